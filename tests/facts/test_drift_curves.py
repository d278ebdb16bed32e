"""Drift position by position."""

from __future__ import annotations

from safe_dtype.facts.drift_curves import drift_curves
from safe_dtype.rendering.curve_chart import Curve


def test_axis_unit_and_limit() -> None:
    """The picture names its unit, its scale and the limit that the mean is held to."""
    chart = drift_curves((Curve("float16", (1e-5, 1e-4), 0),), 0.02)
    assert "nats; logarithmic scale, powers of ten" in chart
    assert "limit of the mean: 0.02 nats" in chart
    assert "position in the measured text (tokens)" in chart


def test_no_distributions() -> None:
    """Where nothing has a KL there is no picture."""
    assert drift_curves((Curve("float16", (), 0),), 0.02) == ""
