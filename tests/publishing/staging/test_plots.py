"""The pictures show the numbers of the evidence."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from publishing.variant import evidence, fidelity

from safe_dtype.publishing.staging.evidence import LayerRange
from safe_dtype.publishing.staging.plots import drift_svg, ranges_svg

SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture: str) -> ElementTree.Element:
    """Return the picture as XML, which it has to be."""
    return ElementTree.fromstring(picture)


def points(picture: str) -> list[list[tuple[float, float]]]:
    """Return the points of each curve."""
    found = parsed(picture).iter(f"{SVG}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in one.attrib["points"].split()] for one in found]  # type: ignore[misc]


def test_a_curve_for_each_loader() -> None:
    """Both curves have a point a position; a larger KL lies higher."""
    for curve in points(drift_svg(evidence())):
        assert len(curve) == 4
        assert curve[1][1] < curve[0][1] < curve[2][1] == curve[3][1]


def test_what_is_not_finite_is_marked() -> None:
    """NaN and infinity are marks at the edge, no points."""
    picture = drift_svg(evidence(plain=fidelity("transformers", kl=(1e-6, math.inf, 1e-6, math.inf))))
    assert [len(curve) for curve in points(picture)] == [2, 4]
    assert sum(one.get("class") == "nonfinite" for one in parsed(picture).iter(f"{SVG}path")) == 2


@pytest.mark.parametrize(
    ("value", "over", "text"), [(66000.0, True, "66,000"), (65000.0, False, "65,000"), (math.inf, True, "infinity")]
)
def test_the_limit_lies_where_float16_ends(value: float, over: bool, text: str) -> None:
    """A bar crosses the dashed line exactly where its number is beyond 65504."""
    picture = parsed(ranges_svg([LayerRange("a<b", 1.0, value)], "float16"))
    limit = next(one for one in picture.iter(f"{SVG}path") if one.get("class") == "limit").attrib["d"]
    bar = list(picture.iter(f"{SVG}rect"))[-1]
    end = float(bar.attrib["x"]) + float(bar.attrib["width"])
    assert (end >= float(limit[1:].split()[0])) is over
    assert next(picture.iter(f"{SVG}title")).text == f"a<b: 1 in float32, {text} in this variant"


def test_nothing_to_draw() -> None:
    """Without numbers there is no picture."""
    assert ranges_svg([], "float16") == ""
    assert drift_svg(evidence(plain=fidelity("transformers", kl=()), safe_dtype=fidelity("safe_dtype", kl=()))) == ""
