"""The picture of ranges: two bars a row on an axis of powers of two, and a line where float16 ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .svg import LINE, LogScale, bar, document, group, legend, text, vertical

_LEFT, _WIDTH, _TOP, _ROW = 300, 520, 62, 16  # in the picture's units; the names of the rows lie left of _LEFT
_LOWEST, _HIGHEST = -4, 24  # powers of two at the edges: a number beyond is drawn at the edge
_ROOM = 30  # right of the axis
_LONGEST = 46  # characters of a name that fit beside the bars


@dataclass(frozen=True, slots=True)
class RangeRow:
    """Two numbers of one thing."""

    name: str
    first: float
    second: float
    title: str  # what a browser shows where the pointer rests


@dataclass(frozen=True, slots=True)
class RangeKey:
    """What one of the two bars is."""

    words: str
    colour: str


def range_bars(
    title: str, rows: Sequence[RangeRow], keys: tuple[RangeKey, RangeKey], *, end: float
) -> str:  # fmt: skip
    """Return the picture of `rows`. `end` is the largest number of float16: a bar that crosses its line overflows."""
    scale = LogScale(2, _LOWEST, _HIGHEST, _LEFT, _LEFT + _WIDTH)
    bottom, limit = _TOP + len(rows) * _ROW + 6, scale.place(end)
    elements = []
    for number, row in enumerate(rows):
        top = _TOP + number * _ROW
        first, second = (scale.place(value) for value in (row.first, row.second))
        name = row.name if len(row.name) <= _LONGEST else f"...{row.name[3 - _LONGEST :]}"
        bars = (
            text(_LEFT - 8, top + 10, name, anchor="end"),
            bar(_LEFT, first, top + 1, 5, keys[0].colour),
            bar(_LEFT, second, top + 7, 5, keys[1].colour),
        )
        elements.append(group("row", row.title, bars))
    elements.append(vertical(limit, _TOP - 6, bottom, LINE, style="dashed", kind="limit"))
    elements.append(text(limit, _TOP - 10, f"{end:.0f}: float16 ends", anchor="middle"))
    elements += legend(36, ((6, keys[0].words, keys[0].colour), (130, keys[1].words, keys[1].colour)))
    elements += (text(place, bottom + 12, label, anchor="middle") for place, label in scale.ticks(4))
    return document(_LEFT + _WIDTH + _ROOM, bottom + 20, elements, title=title)
