"""Bars in HTML: a row each, as wide as the screen has room, with an axis, marked ends and the figures in words."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .svg import LogScale

_LANE, _ROOM = 9, 3  # pixels: of a bar with its gap, and around all bars of a row
_LINE = 16  # pixels of a mark's words
_FIRST = 3  # the first row of bars in the grid: words of marks and an axis stand above


@dataclass(frozen=True, slots=True)
class ChartBar:
    """One bar, from and to a share of the axis (0 to 100). Bars of one lane lie on one line."""

    start: float
    end: float
    key: int  # place of its key: 0, 1 or 2
    lane: int = 0


@dataclass(frozen=True, slots=True)
class ChartRow:
    """One thing with its bars. `figure` has in words what they show."""

    name: str
    bars: tuple[ChartBar, ...]
    figure: str
    title: str = ""  # shown where the pointer rests
    is_chosen: bool = False
    is_rejected: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across all rows, at a share of the axis; words alone for what lies beyond the axis."""

    place: float
    words: str
    is_beyond: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """What the bars are measured by: its name with unit and kind of scale, and its ticks as (share, label, exponent)."""

    name: str
    ticks: tuple[tuple[float, str, str], ...]


def bar_chart(rows: Sequence[ChartRow], keys: Sequence[str], axis: Axis, *, marks: Sequence[Mark] = ()) -> str:
    """Return the chart: the name of the axis, what the colours mean, ticks above and below, and a row each.

    Without `keys` all bars are of one kind, which the name of the axis says.
    """
    if not rows:
        return ""
    lanes = 1 + max((bar.lane for row in rows for bar in row.bars), default=0)
    height = lanes * _LANE + 2 * _ROOM
    words = "".join(_words_of(marks))
    parts = [
        f'<div class="top" style="grid-row:1;height:{len(marks) * _LINE}px">{words}</div>',
        _axis(axis, 2),
        f'<div class="grid" style="grid-row:{_FIRST}/span {len(rows)}">{_lines(axis, marks)}</div>',  # over all bars
        *(_row(row, _FIRST + place, height) for place, row in enumerate(rows)),
        _axis(axis, _FIRST + len(rows)),
    ]
    legend = "".join(f'<span class="key k{place}">{html.escape(words)}</span>' for place, words in enumerate(keys))
    legend = f'<div class="keys">{legend}</div>' if keys else ""
    return (
        f'<figure><div class="soft">{html.escape(axis.name)}</div>{legend}'
        f'<div class="chart">{"".join(parts)}</div></figure>'
    )


def log_axis(scale: LogScale, name: str, *, step: int) -> Axis:
    """Return the axis of a scale from 0 to 100, with a tick at every `step`-th power."""
    powers = range(scale.lowest, scale.highest + 1, step)
    return Axis(name, tuple((scale.place_of_power(power), str(scale.base), str(power)) for power in powers))


def linear_axis(largest: float, name: str, written: Iterable[tuple[float, str]]) -> Axis:
    """Return an axis from 0 to `largest`; `written` are values with their words, and 0 needs none."""
    return Axis(name, tuple((100 * value / largest, words if value else "0", "") for value, words in written))


def even_steps(largest: float, most: int = 5) -> list[float]:
    """Return 0 and round values up to `largest`, at most `most` steps: 7.3 -> 0, 2, 4, 6."""
    size = 1.0
    while largest / size > most:
        size *= 10
    while largest / size <= most / 10:
        size /= 10
    step = next(size * part for part in (0.1, 0.2, 0.5, 1) if largest / (size * part) <= most)
    return [number * step for number in range(int(largest / step + 1e-9) + 1)]


def _row(row: ChartRow, place: int, height: int) -> str:
    state = (" chosen" if row.is_chosen else "") + (" rejected" if row.is_rejected else "")
    title = html.escape(row.title)
    middle = (height - _LANE * (1 + max((bar.lane for bar in row.bars), default=0))) / 2
    bars = "".join(
        f'<i class="bar k{bar.key}" style="left:{bar.start:.2f}%;width:{max(bar.end - bar.start, 0):.2f}%;'
        f'top:{middle + bar.lane * _LANE:.0f}px;height:{_LANE - 2}px"></i>'
        for bar in row.bars
    )
    at = f"grid-row:{place}"
    return (
        f'<div class="name{state}" style="{at}" title="{title}">{html.escape(row.name)}</div>'
        f'<div class="track{state}" style="{at};height:{height}px" title="{title}">{bars}</div>'
        f'<div class="figure{state}" style="{at}" title="{title}">{html.escape(row.figure)}</div>'
    )


def _axis(axis: Axis, row: int) -> str:
    labels = "".join(
        f'<span style="left:{share:.2f}%">{html.escape(label)}'
        + (f"<sup>{html.escape(exponent)}</sup>" if exponent else "")
        + "</span>"
        for share, label, exponent in axis.ticks
    )
    return f'<div class="axis" style="grid-row:{row}" aria-hidden="true">{labels}</div>'


def _lines(axis: Axis, marks: Sequence[Mark]) -> str:
    ticks = (f'<i class="tick" style="left:{share:.2f}%"></i>' for share, _, _ in axis.ticks)
    ends = (f'<i class="mark" style="left:{mark.place:.2f}%"></i>' for mark in marks if not mark.is_beyond)
    return "".join((*ticks, *ends))


def _words_of(marks: Sequence[Mark]) -> Iterator[str]:
    """Yield the words of each mark on a line of its own, on the side of its line that has more room."""
    for line, mark in enumerate(marks):
        side = f"left:{mark.place:.2f}%" if mark.place < 50 else f"right:{100 - mark.place:.2f}%"
        yield f'<span class="word" style="{side};top:{line * _LINE}px">{html.escape(mark.words)}</span>'
