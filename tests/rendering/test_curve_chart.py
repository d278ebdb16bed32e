"""Curves: logarithmic upwards, a limit, and marks for what is not finite."""

from __future__ import annotations

import math
import re

from safe_dtype.rendering.curve_chart import Curve, Limit, curve_chart

LIMIT = Limit(0.01, "limit: 0.01")


def points(chart: str) -> list[tuple[float, float]]:
    """Return the points of the first curve."""
    found = re.search(r'points="([^"]+)"', chart)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_places() -> None:
    """From the lowest power at the foot to the highest at the top, and from the first position to the last."""
    chart = curve_chart([Curve("a", (1e-9, 1e-5, 1e-1), 0)], LIMIT, upwards="KL (nats)", to_the_right="tokens")
    assert points(chart) == [(0, 100), (50, 50), (100, 0)]
    assert "10<sup>-9</sup>" in chart
    assert "KL (nats)" in chart
    assert "tokens" in chart
    assert 'class="limit" d="M0 12.5H100"' in chart


def test_what_is_not_finite_is_marked() -> None:
    """It is no point of the curve, and has a mark of its own above."""
    chart = curve_chart([Curve("a", (1e-3, math.nan, math.inf), 0)], LIMIT, upwards="", to_the_right="")
    assert len(points(chart)) == 1
    assert 'nonfinite" d="M50.00 0V-4M100.00 0V-4"' in chart


def test_exact_results_lie_at_the_foot() -> None:
    """A KL of 0 has no logarithm."""
    chart = curve_chart([Curve("a", (0.0, 1e-3), 0)], LIMIT, upwards="", to_the_right="")
    assert points(chart)[0] == (0, 100)


def test_nothing_to_show() -> None:
    """Without values there is no chart; one value is drawn at the left."""
    assert curve_chart([Curve("a", (), 0)], LIMIT, upwards="", to_the_right="") == ""
    assert points(curve_chart([Curve("a", (1e-9,), 0)], LIMIT, upwards="", to_the_right="")) == [(0, 100)]


def test_foreign_words_are_text() -> None:
    """A name brings no markup along."""
    evil = '"><script>'
    assert "<script" not in curve_chart([Curve(evil, (1.0,), 0)], Limit(1, evil), upwards=evil, to_the_right=evil)
