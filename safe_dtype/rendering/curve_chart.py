"""Curves in HTML: a logarithmic axis upwards, positions to the right, and a dashed line for a limit."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from .svg import LogScale

_FEET = 4  # ticks to the right, besides the first
_MOST_LABELS = 6  # upwards


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at positions 0, 1, 2, ...; the key says what they are. What is not finite is marked at the upper edge."""

    words: str
    values: tuple[float, ...]
    key: int  # its colour: 0, 1 or 2


@dataclass(frozen=True, slots=True)
class Limit:
    """A value that is drawn as a dashed line."""

    value: float
    words: str


def curve_chart(curves: Sequence[Curve], limit: Limit, *, upwards: str, to_the_right: str, lowest: int = -9) -> str:
    """Return the chart; nothing where no curve has a value. `lowest` is the power of ten at its foot."""
    curves = [curve for curve in curves if curve.values]
    if not curves:
        return ""
    finite = [value for curve in curves for value in curve.values if math.isfinite(value)]
    highest = math.ceil(math.log10(max([limit.value, 10.0 ** (lowest + 1), *finite])))
    scale = LogScale(10, lowest, highest, 100, 0)
    powers = range(lowest, highest + 1, -(-(highest - lowest) // _MOST_LABELS))
    length = max(len(curve.values) for curve in curves)
    labels = "".join(
        f'<span style="top:{scale.place_of_power(power):.1f}%">{_power(power)}</span>' for power in powers
    )
    lines = "".join(f"M0 {scale.place_of_power(power):.1f}H100" for power in powers)
    at_limit = scale.place(limit.value)
    shapes = [f'<path class="lines" d="{lines}"/>', f'<path class="limit" d="M0 {at_limit:.1f}H100"/>']
    shapes += [_curve(curve, scale, length) for curve in curves]
    feet = sorted({round(part * (length - 1) / _FEET) for part in range(_FEET + 1)})
    below = "".join(f'<span style="left:{100 * foot / max(1, length - 1):.1f}%">{foot}</span>' for foot in feet)
    keys = "".join(f'<span class="key k{curve.key}">{html.escape(curve.words)}</span>' for curve in curves)
    return (
        f'<figure><div class="soft">{html.escape(upwards)}</div><div class="keys">{keys}'
        f'<span class="tag bad">- - {html.escape(limit.words)}</span></div>'
        f'<div class="plot"><div class="scale" aria-hidden="true">{labels}</div><div class="area">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{html.escape(upwards)}">'
        f'{"".join(shapes)}</svg></div><div class="feet" aria-hidden="true">{below}</div></div>'
        f'<div class="soft">{html.escape(to_the_right)}</div></figure>'
    )


def _curve(curve: Curve, scale: LogScale, length: int) -> str:
    step = 100 / max(1, length - 1)
    places = [(number * step, value) for number, value in enumerate(curve.values)]
    points = " ".join(f"{x:.2f},{scale.place(value):.2f}" for x, value in places if math.isfinite(value))
    beyond = "".join(f"M{x:.2f} 0V-4" for x, value in places if not math.isfinite(value))
    marks = f'<path class="curve k{curve.key} nonfinite" d="{beyond}"/>' if beyond else ""
    return (f'<polyline class="curve k{curve.key}" points="{points}"/>' if points else "") + marks


def _power(power: int) -> str:
    return f"10<sup>{power}</sup>" if power else "1"
