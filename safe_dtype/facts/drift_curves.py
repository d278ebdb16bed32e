"""Drift position by position, for a page; and the words that explain it."""

from __future__ import annotations

from collections.abc import Sequence

from ..rendering.curve_chart import Curve, Limit, curve_chart

HOW_TO_READ = (
    "How to read it. At each position of the text the two models give a probability to every token of the vocabulary. KL "
    "(the Kullback-Leibler divergence, in nats) is how far these probabilities lie apart: 0 is equal, 0.02 is hardly "
    "noticed, and from about 1 on the texts are different ones. The scale is logarithmic, in powers of ten; a mark above "
    "the upper edge is NaN or infinity."
)


def drift_curves(curves: Sequence[Curve], max_drift: float) -> str:
    """Return the chart of KL from float32, in nats, at every position; nothing where there are no values."""
    limit = Limit(max_drift, f"limit of the mean: {max_drift:g} nats")
    upwards = "KL from the reference at every position (nats; logarithmic scale, powers of ten)"
    return curve_chart(curves, limit, upwards=upwards, to_the_right="position in the measured text (tokens)")
