"""What a notebook shows is HTML in which foreign text is text."""

from __future__ import annotations

import pytest

from safe_dtype.rendering.notebook import html_table, notebook, paragraph, picture
from safe_dtype.rendering.tables import Column


def test_text_is_escaped() -> None:
    """Neither a line nor a cell nor a title can bring markup along."""
    page = notebook(paragraph(["<b>", "x"]), html_table([Column("<i>")], [("<script>",)]))
    assert page == (
        "<div><p>&lt;b&gt;<br>x</p><table><thead><tr><th>&lt;i&gt;</th></tr></thead>\n"
        '<tbody>\n<tr><td style="padding: 0.2em 0.6em; text-align: left">&lt;script&gt;</td></tr>\n</tbody></table></div>'
    )


def test_numbers_are_to_the_right() -> None:
    """A column of numbers is aligned as in a terminal."""
    assert '<td style="padding: 0.2em 0.6em; text-align: right; white-space: nowrap">1</td>' in html_table(
        [Column("n", number=True)], [("1",)]
    )


def test_nothing_to_say() -> None:
    """Where there are no lines there is no paragraph, and where there are no rows no table."""
    assert paragraph([]) == ""
    assert html_table([Column("n")], []) == ""


def test_a_row_that_does_not_fit() -> None:
    """A row with a cell too few is an error, and no table that shows the wrong figure below a title."""
    with pytest.raises(ValueError, match="zip"):
        html_table([Column("n"), Column("m")], [("1",)])


def test_picture_fits_the_page() -> None:
    """A picture grows with the page up to the width of its text."""
    assert picture("<svg/>") == (
        '<div style="max-width: 46rem; overflow-x: auto"><div style="min-width: 34rem"><svg/></div></div>'
    )
