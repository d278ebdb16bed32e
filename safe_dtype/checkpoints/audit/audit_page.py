"""An audit as a page for people: a table, and a picture. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...facts import FLOAT16
from ...rendering.notebook import html_table, notebook, paragraph, picture
from ...rendering.svg import BLUE, BROWN, LINE, Anchor, LogScale, bar, document, group, horizontal, text, vertical
from ...rendering.tables import Column, Table, page, table
from .audit_weights import ROOM_SHARE, Audit, Group
from .census import Census

_MOST_ROWS = 20
_MOST_NAMES = 10

_COLUMNS = (
    Column("tensors", wraps=True),
    *(
        Column(title, number=True)
        for title in ("count", "weights", "overflow", "inexact", "vanish", "largest", "room")
    ),
)

_ROW, _LEFT, _WIDTH, _TOP = 20, 330, 560, 64  # of the picture, in its units
_LOWEST, _HIGHEST = -34, 18  # powers of two at its edges: a number beyond is drawn at the edge
_SCALE = LogScale(2, _LOWEST, _HIGHEST, _LEFT, _LEFT + _WIDTH)


def audit_text(audit: Audit, *, width: int) -> str:
    """Return the audit: the verdict, the room to scale, and the groups of tensors that matter most, worst first."""
    return page(_parts(audit), width=width)


def audit_html(audit: Audit) -> str:
    """Return the verdict, the picture and the groups of tensors that matter most, as HTML for a notebook."""
    groups = sorted(audit.groups, key=_worst_first)[:_MOST_ROWS]
    shown = [picture(audit_svg(audit)), html_table(_COLUMNS, map(_row, groups))] if groups else []
    return notebook(paragraph([f"{audit.source}: {audit.verdict}."]), *shown, paragraph(_remarks(audit)))


def _parts(audit: Audit) -> Iterator[str | Table]:
    dtypes = ", ".join(sorted({checked.tensor.dtype for checked in audit.tensors})) or "no floats"
    yield f"{audit.source} ({dtypes}): {audit.verdict}."
    if audit.tensors:
        yield (
            f"Room to scale all of them: {_room(audit.total)}. Up, until one overflows; down, until more than "
            f"{ROOM_SHARE:.1%} are below 2^{audit.total.floor}, where float16 drops bits."
        )
        groups = sorted(audit.groups, key=_worst_first)
        yield table(_COLUMNS, (_row(tensors) for tensors in groups[:_MOST_ROWS]), tight=True)
        if rest := groups[_MOST_ROWS:]:
            yield f"... and {len(rest)} rows more, with an inexact share of at most {_share(_worst(rest))}"
    yield from _remarks(audit)


def _remarks(audit: Audit) -> Iterator[str]:
    for checked in audit.overflowing[:_MOST_NAMES]:
        census = checked.census
        yield f"overflows: {checked.tensor.name}, {census.overflowing:,} weights, up to {census.largest:.6g}"
    if (more := len(audit.overflowing) - _MOST_NAMES) > 0:
        yield f"... and {more} tensors more that overflow"
    broken = [checked for checked in audit.tensors if checked.census.infinite or checked.census.nan]
    for checked in broken[:_MOST_NAMES]:
        census = checked.census
        yield f"not finite as saved: {checked.tensor.name}, {census.infinite:,} infinite, {census.nan:,} NaN"
    if (more := len(broken) - _MOST_NAMES) > 0:
        yield f"... and {more} tensors more that are not finite"
    if audit.left_alone:
        kinds = ", ".join(sorted({tensor.dtype for tensor in audit.left_alone}))
        yield f"not looked at: {len(audit.left_alone)} tensors in {kinds}"


def _room(census: Census) -> str:
    """Return the powers of two that the numbers can be multiplied by."""
    up, down = census.bits_up, census.bits_down(ROOM_SHARE)
    if up is None or down is None:
        return "any"
    return f"2^{-down}..2^{up}" if -down <= up else "none"


def _worst(groups: list[Group]) -> float:
    return max(one.census.inexact_share for one in groups)


def _worst_first(group: Group) -> tuple[float, ...]:
    census = group.census
    return (-census.overflowing, -census.inexact_share, -census.vanishing, -census.largest)


def _row(tensors: Group) -> tuple[str, ...]:
    census = tensors.census
    return (
        tensors.pattern,
        str(len(tensors.tensors)),
        f"{census.elements:,}",
        f"{census.overflowing:,}" if census.overflowing else "-",
        _share(census.inexact_share),
        f"{census.vanishing:,}" if census.vanishing else "-",
        f"{census.largest:.4g}",
        _room(census),
    )


def _label(group: Group) -> str:
    return group.pattern if len(group.tensors) == 1 else f"{len(group.tensors)}x {group.pattern}"


def _share(share: float) -> str:
    """Return a share as people read it; one that is not zero never reads as if it were."""
    if not share:
        return "-"
    return f"{share:.2%}" if share >= 1e-4 else f"{share:.0e}"


def audit_svg(audit: Audit) -> str:
    """Return a picture as SVG: for each group of tensors where its weights lie, beside the limits of float16.

    A thin line goes from the smallest weight that is not zero to the largest, a bar over all but 1 % at either end.
    The axis is logarithmic.
    """
    bottom = _TOP + _ROW * len(audit.groups)
    elements = [*_limits(bottom)]
    for place, tensors in enumerate(audit.groups):
        elements.append(_picture_row(tensors, _TOP + _ROW * place))
    elements += (text(x, bottom + 18, label, anchor="middle") for x, label in _SCALE.ticks(6, first=-30))
    caption = "|weight|: all of them (line), all but 1 % at either end (bar)"
    elements.append(text(_LEFT + _WIDTH / 2, bottom + 36, caption, anchor="middle"))
    title = f"{audit.source}: weights against float16"
    return document(_LEFT + _WIDTH + 30, bottom + 48, elements, title=title)


def _limits(bottom: int) -> Iterator[str]:
    limits: tuple[tuple[float, str, int, Anchor], ...] = (
        (-24.0, "2^-24: smallest", 36, "middle"),
        (-17.0, "2^-17: bfloat16 is exact", 50, "end"),
        (-14.0, "2^-14: 11 bits", 36, "middle"),
        (math.log2(FLOAT16.largest), f"{FLOAT16.largest:.0f}: largest", 36, "middle"),
    )
    for power, name, y, anchor in limits:
        x = _SCALE.place_of_power(power)
        yield vertical(x, y + 4, bottom, LINE, style="dashed")
        yield text(x, y, name, anchor=anchor)


def _picture_row(tensors: Group, top: int) -> str:
    census = tensors.census
    colour = BLUE if census.fits else BROWN
    title = (
        f"{_label(tensors)}: {census.smallest:.3g} to {census.largest:.4g}, {census.overflowing:,} overflow, "
        f"{census.inexact:,} of {census.elements:,} inexact, {census.vanishing:,} vanish"
    )
    elements = [text(_LEFT - 8, top + 14, _label(tensors), anchor="end")]
    low, high = census.quantile(0.01), census.quantile(0.99)
    if low is not None and high is not None:
        first, last = _SCALE.place(census.smallest), _SCALE.place(census.largest)
        elements.append(horizontal(top + 10, first, max(last, first + 1), colour))
        left, right = _SCALE.place_of_power(low), _SCALE.place_of_power(high)
        elements.append(bar(left, right, top + 4, 12, colour, opacity=0.6))
    return group("group", title, elements)
