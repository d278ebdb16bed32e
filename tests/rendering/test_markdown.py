"""Text as Markdown that GitHub renders as it was meant."""

from __future__ import annotations

import pytest

from safe_dtype.rendering.markdown import code, inline, one_line, table


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        pytest.param("a_b*c", r"a_b\*c", id="emphasis"),
        pytest.param("_a_ __b__", r"\_a\_ \_\_b\_\_", id="underscores"),
        pytest.param("<b>[x](y)", r"&lt;b>\[x\](y)", id="html-and-links"),
        pytest.param("&lt; &#60; a & b", "&amp;lt; &amp;#60; a & b", id="entities"),
        pytest.param("https://x.y WWW.x a@b.c", r"https\://x.y WWW\.x a\@b.c", id="addresses"),
        pytest.param("two\n lines\t", "two lines", id="white-space"),
        pytest.param("C:\\a", "C:\\\\a", id="backslash"),
    ],
)
def test_inline(text: str, rendered: str) -> None:
    """Nothing of foreign text is taken for markup."""
    assert inline(text) == rendered


@pytest.mark.parametrize(
    ("text", "rendered"),
    [("x*y", "`x*y`"), ("a`b", "`` a`b ``"), ("a``b`", "``` a``b` ```"), ("a\\|b", "`a\\ |b`"), ("a\nb", "`a b`")],
)
def test_code(text: str, rendered: str) -> None:
    """A code span, also of text with backticks, and one that a bar in a table does not end."""
    assert code(text) == rendered


def test_table() -> None:
    """A bar in a cell is escaped: it is a cell, not two."""
    assert list(table(("a", "b"), [("1 | 2", code("x|y"))])) == [
        "| a | b |",
        "| --- | --- |",
        r"| 1 \| 2 | `x\|y` |",
    ]


def test_one_line() -> None:
    """White space of any kind is one space."""
    assert one_line("  a \n\n\tb ") == "a b"
