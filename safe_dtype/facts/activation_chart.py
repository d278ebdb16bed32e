"""The largest numbers of every layer beside the ends of the dtypes, for a page; and the words that explain the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..rendering.bar_chart import ChartBar, ChartRow, Mark, bar_chart, log_axis
from ..rendering.svg import LogScale
from ..rendering.units import size_text
from .dtypes import BFLOAT16, FLOAT8_E4M3, FLOAT16

Peaks = tuple[str, float, float]  # a layer, its largest |number| as it is, and as it becomes

_LEAST, _MOST = -4, 24  # powers of two that are always on the axis
_FURTHEST = 128  # where bfloat16 and float32 end
_TICKS = 9

INSIDE = "anywhere inside"
ABOUT_INSIDE = f"{INSIDE}: the largest of all numbers, also of those that stay within a layer."
HOW_TO_READ = (
    "How to read it. Each layer has two bars: the largest number, without its sign, that the layer hands on to the next. "
    "The scale is logarithmic, in powers of two: a step to the right multiplies, so 2^8 (256) is 16 times 2^4 (16). A number "
    "whose bar crosses the dashed line of a dtype is too large for that dtype: it becomes infinity, and NaN in the step after "
    "that.",
    "What 2^-17 means. 2^-17 is 1/131,072, and 2^-8 is 1/256: a rescale by 2^-8 makes numbers 256 times smaller, and what "
    "comes after it makes up for that. A power of two changes the exponent of a number and no digit of it, so the results "
    "stay the same bits, as long as nothing falls below the smallest numbers of float16 (2^-14 with all digits, 2^-24 with "
    "one).",
)


def activation_chart(peaks: Sequence[Peaks], keys: tuple[str, str], *, inside: Peaks | None = None) -> str:
    """Return the chart of `peaks`, a row a layer; nothing where there are none.

    Args:
        peaks: What each layer hands on.
        keys: What the two bars are.
        inside: The largest of all numbers, also of those that no layer hands on: a row of its own, the first.
    """
    if not peaks:
        return ""
    finite = [value for _, *both in (*peaks, *filter(None, (inside,))) for value in both if 0 < value < math.inf]
    powers = [math.log2(value) for value in finite]
    lowest = 4 * math.floor(min([_LEAST, *powers]) / 4) if min([0, *powers]) < _LEAST else _LEAST
    highest = min(_FURTHEST, 4 * math.ceil(max([_MOST, *powers]) / 4))
    scale = LogScale(2, max(lowest, -24), highest, 0, 100)
    before, after = _shared([name for name, *_ in peaks])
    shown = [
        (name[len(before) : len(name) - len(after)] or name, name, first, second) for name, first, second in peaks
    ]
    shown = [*([(inside[0], *inside)] if inside else []), *shown]
    rows = [
        ChartRow(
            short,
            (ChartBar(0, scale.place(first), 0), ChartBar(0, scale.place(second), 1, lane=1)),
            f"{_figure(first)} \N{RIGHTWARDS ARROW} {_figure(second)}",
            f"{name}: {keys[0]} {_figure(first)}, {keys[1]} {_figure(second)}",
        )
        for short, name, first, second in shown
    ]
    step = next(size for size in (4, 8, 16, 32) if (highest - scale.lowest) / size <= _TICKS)
    named = f" of {before}*{after}" if before or after else ""
    axis = log_axis(scale, f"Largest |number|{named} (no unit; logarithmic scale, powers of two)", step=step)
    is_beyond = highest < _FURTHEST
    furthest = f"{BFLOAT16} and float32 end at 3.4e38, 2^128" + (": far to the right" if is_beyond else "")
    marks = (
        Mark(100, furthest, is_beyond=is_beyond),
        Mark(scale.place(FLOAT16.largest), f"{FLOAT16} ends at {FLOAT16.largest:,.0f}"),
        Mark(scale.place(FLOAT8_E4M3.largest), f"float8 (e4m3) ends at {FLOAT8_E4M3.largest:.0f}"),
    )
    return bar_chart(rows, keys, axis, marks=marks)


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return size_text(value)


def _shared(names: Sequence[str]) -> tuple[str, str]:
    """Return what all names begin with and end with, in whole parts between points; of one name nothing."""
    if len(names) < 2:
        return "", ""
    start = _beginning(names)
    start = start[: start.rfind(".") + 1]
    end = _beginning([name[len(start) :][::-1] for name in names])[::-1]
    place = end.find(".")
    return start, end[place:] if place >= 0 else ""


def _beginning(names: Sequence[str]) -> str:
    """Return the letters that all names begin with."""
    first, last = min(names), max(names)
    return first[: next((place for place, letter in enumerate(first) if letter != last[place]), len(first))]
