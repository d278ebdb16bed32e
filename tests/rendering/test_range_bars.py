"""Two bars a row: what is beyond float16 crosses the line, and every name is readable."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from safe_dtype.rendering.range_bars import RangeKey, RangeRow, range_bars
from safe_dtype.rendering.svg import BLUE, BROWN

SVG = "{http://www.w3.org/2000/svg}"
KEYS = (RangeKey("before", BROWN), RangeKey("after", BLUE))


def drawn(*rows: RangeRow) -> ElementTree.Element:
    """Return the picture as XML."""
    return ElementTree.fromstring(range_bars("Ranges", rows, KEYS, end=65504.0))


def ends(row: ElementTree.Element) -> list[float]:
    """Return where the two bars of a row end."""
    return [float(one.attrib["x"]) + float(one.attrib["width"]) for one in row.iter(f"{SVG}rect")]


@pytest.mark.parametrize(("first", "second"), [(70_000.0, 60_000.0), (float("inf"), 0.0), (65_600.0, 65_400.0)])
def test_beyond(first: float, second: float) -> None:
    """Exactly a bar beyond the largest number of float16 crosses the line."""
    picture = drawn(RangeRow("block", first, second, "hover"))
    limit = next(line for line in picture.iter(f"{SVG}path") if line.get("class") == "limit").attrib["d"]
    before, after = ends(next(picture.iter(f"{SVG}g")))
    assert after <= float(limit[1:].split()[0]) <= before


def test_rows() -> None:
    """Each row has its name, its title and two bars in the colours of the keys."""
    picture = drawn(RangeRow("a<b>", 1.0, 2.0, "1 & 2"), RangeRow("c", 3.0, 4.0, "3 & 4"))
    rows = list(picture.iter(f"{SVG}g"))
    assert [(row.findtext(f"{SVG}title"), row.findtext(f"{SVG}text")) for row in rows] == [
        ("1 & 2", "a<b>"), ("3 & 4", "c"),
    ]  # fmt: skip
    assert [[bar.get("fill") for bar in row.iter(f"{SVG}rect")] for row in rows] == [[BROWN, BLUE]] * 2
    words = {one.text: one.get("fill") for one in picture.findall(f"{SVG}text")}
    assert (words["before"], words["after"]) == (BROWN, BLUE)
    assert "65504: float16 ends" in words


def test_a_long_name() -> None:
    """Of a name that does not fit the end is shown, and the title has all of it."""
    name = "model." + "deep." * 20 + "layer.7"
    (row,) = drawn(RangeRow(name, 1.0, 1.0, f"{name}: 1")).iter(f"{SVG}g")
    shown = row.findtext(f"{SVG}text", "")
    assert shown.startswith("...")
    assert shown.endswith("deep.layer.7")
    assert len(shown) == 46
    assert row.findtext(f"{SVG}title") == f"{name}: 1"
