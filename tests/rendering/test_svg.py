"""Elements of pictures: XML whatever the text is, and places that follow the numbers."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from safe_dtype.rendering.svg import BLUE, LogScale, bar, curve, document, group, horizontal, legend, text, vertical

SVG = "{http://www.w3.org/2000/svg}"


def element(drawn: str) -> ElementTree.Element:
    """Return the only element of a picture, beside its background."""
    _, only = ElementTree.fromstring(document(100, 50, [drawn]))
    return only


def test_a_document() -> None:
    """It has the size that was asked for, white below everything, its title first, then the elements in order."""
    root = ElementTree.fromstring(document(100, 50.25, [bar(1, 4, 2, 3, BLUE)], title="a < b & c"))
    assert root.get("viewBox") == "0 0 100 50.2"
    background, title, rectangle = root
    assert (background.tag, background.get("fill")) == (f"{SVG}rect", "white")
    assert title.text == "a < b & c"
    assert (rectangle.get("x"), rectangle.get("y"), rectangle.get("height"), rectangle.get("fill")) == (
        "1",
        "2",
        "3",
        BLUE,
    )


@pytest.mark.parametrize("words", ["plain", "a<b>&c", "</text>", "\"'", "2^-14 ▶"])
def test_any_text(words: str) -> None:
    """Text is shown as it is, also in the title of a group."""
    assert element(text(1, 2, words)).text == words
    drawn = element(group("row", words, [text(1, 2, words)]))
    assert [part.text for part in drawn] == [words, words]
    assert drawn.get("class") == "row"


def test_where_a_text_lies() -> None:
    """Its anchor and its weight are said only where they are not the usual ones."""
    usual = element(text(1.26, 2, "x"))
    assert (usual.get("x"), usual.get("text-anchor"), usual.get("font-weight")) == ("1.3", None, None)
    other = element(text(1, 2, "x", anchor="end", bold=True, colour=BLUE))
    assert (other.get("text-anchor"), other.get("font-weight"), other.get("fill")) == ("end", "bold", BLUE)


def test_lines() -> None:
    """A line goes from one end to the other; its style and its class are attributes."""
    limit = element(vertical(10, 5, 40, BLUE, style="dashed", kind="limit"))
    assert (limit.get("d"), limit.get("stroke-dasharray"), limit.get("class")) == ("M10 5V40", "3 3", "limit")
    assert element(vertical(10, 5, 40, BLUE, style="thick")).get("stroke-width") == "2"
    thin = element(horizontal(7, 1, 9.5, BLUE))
    assert thin.attrib == {"d": "M1 7H9.5", "stroke": BLUE}


@pytest.mark.parametrize(("right", "width"), [(30, "20"), (11, "2"), (10, "2"), (5, "2")])
def test_bars(right: float, width: str) -> None:
    """A bar reaches from left to right, and is seen where there is almost nothing to draw."""
    drawn = element(bar(10, right, 1, 8, BLUE, opacity=0.6))
    assert (drawn.get("x"), drawn.get("width"), drawn.get("fill-opacity")) == ("10", width, "0.6")


def test_a_curve() -> None:
    """Its points are pairs, in order."""
    assert element(curve([(1, 2.04), (3.06, 4)], BLUE)).get("points") == "1,2 3.1,4"


def test_a_legend() -> None:
    """Each key is written in its own colour."""
    (key,) = legend(9, [(5, "as saved", BLUE)])
    assert (element(key).text, element(key).get("fill"), element(key).get("x")) == ("as saved", BLUE, "5")


class TestLogScale:
    """A scale of powers."""

    TENS = LogScale(10, -8, 0, 100, 500)
    TWOS = LogScale(2, -4, 24, 0, 280)

    @pytest.mark.parametrize(
        ("value", "place"),
        [(1e-8, 100), (1e-4, 300), (1, 500), (0, 100), (-1, 100), (1e-20, 100), (7, 500), (math.inf, 500), (math.nan, 500)],
    )  # fmt: skip
    def test_place(self, value: float, place: float) -> None:
        """A number lies where its logarithm does, and beyond the scale at its edge."""
        assert self.TENS.place(value) == pytest.approx(place)

    def test_downwards(self) -> None:
        """A scale may end above its start: a larger number lies higher."""
        upright = LogScale(2, 0, 10, 300, 100)
        assert upright.place(2.0**5) == 200

    def test_ticks(self) -> None:
        """Labels are powers of the base."""
        assert [label for _, label in self.TENS.ticks(4)] == ["1e-8", "1e-4", "1"]
        assert list(self.TWOS.ticks(12, first=0)) == [(40, "2^0"), (160, "2^12"), (280, "2^24")]
