"""A page is one file: nothing is loaded, nothing runs, and foreign text is text."""

from __future__ import annotations

import re

import pytest
from one_file import loads_nothing

from safe_dtype.rendering.html_page import (
    Tag,
    bullets,
    commands,
    folded,
    heading,
    html_page,
    lead,
    page_table,
    prose,
    section,
    sentence,
    warned,
)
from safe_dtype.rendering.page_style import STYLE
from safe_dtype.rendering.tables import Column

EVIL = "<script>alert(1)</script>\"'&"


def test_foreign_text_is_text() -> None:
    """Whatever a part is made of, no markup comes in with it."""
    parts = [
        lead(EVIL, Tag(EVIL, "bad")), prose(EVIL), warned(f"`{EVIL}`"), bullets([EVIL]), commands(EVIL), folded(EVIL, prose(EVIL)),
        section(EVIL, heading(EVIL), page_table((Column(EVIL),), [(EVIL,), (Tag(EVIL),)])),
    ]  # fmt: skip
    page = html_page(EVIL, parts, made_by=EVIL)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 18  # the title twice, and that of the column in each of its rows
    loads_nothing(page)


def test_code_is_code() -> None:
    """What a text has between backticks is shown as code, and the backticks are not."""
    assert prose("`a < b` is it") == "<p><code>a &lt; b</code> is it</p>"


def test_long_names_are_broken_after_a_point() -> None:
    """A narrow screen breaks the name of a weight between its parts, and a number nowhere."""
    assert prose("model.layers.mlp takes 1.25 s") == "<p>model.<wbr>layers.<wbr>mlp takes 1.25 s</p>"


def test_it_is_for_light_and_dark_and_any_width() -> None:
    """The page follows what the reader's system is set to, and the width of the screen."""
    assert "prefers-color-scheme:dark" in STYLE
    assert "color-scheme:light dark" in STYLE
    assert "@media (max-width" in STYLE
    assert 'name="viewport" content="width=device-width' in html_page("x", [], made_by="y")


@pytest.mark.parametrize("theme", re.findall(r"--paper:[^}]+", STYLE))
def test_every_colour_of_text_can_be_read(theme: str) -> None:
    """Text has at least 4.5 times the contrast to the page that WCAG asks for, in both themes; bars have 3."""
    colours = dict(re.findall(r"--(\w+):(#\w+)", theme))
    for name in ("ink", "soft", "good", "fair", "bad"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours[name], colours["wash"]) >= 4.5, name
    for name in ("first", "second", "third"):
        assert contrast(colours[name], colours["paper"]) >= 3, name


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, 1 to 21, as WCAG defines it."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of `#rgb` or `#rrggbb`."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_row_has_its_titles_with_it() -> None:
    """On a phone, where the head of a table is hidden, each value stands beside its title."""
    table = page_table((Column("dtype"), Column("time", number=True)), [("float16", "3 ms")])
    assert '<td data-title="dtype">float16</td>' in table
    assert '<td class="number" data-title="time">3 ms</td>' in table


def test_a_cell_is_one_thing() -> None:
    """Words and code in a cell stand together beside the title that a phone shows; so do the parts of a long name."""
    table = page_table((Column("reason"),), [("`rescue` measures them",), ("model.layers.0.mlp",), ("words",)])
    assert '<td data-title="reason"><div><code>rescue</code> measures them</div></td>' in table
    assert '<td data-title="reason"><div>model.<wbr>layers.<wbr>0.<wbr>mlp</div></td>' in table
    assert '<td data-title="reason">words</td>' in table


def test_nothing_is_nothing() -> None:
    """What has no content leaves no title, no list and no table behind."""
    assert section("Empty", "", bullets([]), page_table((Column("a"),), [])) == ""


@pytest.mark.parametrize(("words", "shown"), [("a b", "A b."), ("A b.", "A b."), ("", ".")])
def test_sentence(words: str, shown: str) -> None:
    """A reason becomes a sentence."""
    assert sentence(words) == shown
