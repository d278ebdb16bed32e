"""An audit as a page for people: a table, and a picture. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import StringIO
from xml.sax.saxutils import escape

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..checkpoints.audit.audit_weights import ROOM_SHARE, Audit, Group
from ..checkpoints.audit.census import LARGEST, Census

_MOST_ROWS = 20
_MOST_NAMES = 10

_ROW, _LEFT, _WIDTH, _TOP = 20, 330, 560, 64  # of the picture, in its units
_LOWEST, _HIGHEST = -34, 18  # powers of two at its edges: a number beyond is drawn at the edge
_FITS, _OVERFLOWS, _LINE = "#1f6f8b", "#b3552d", "#777"


def audit_text(audit: Audit, *, width: int) -> str:
    """Return the audit: the verdict, the room to scale, and the groups of tensors that matter most, worst first."""
    text = StringIO()
    out = Console(file=text, width=width, color_system=None, highlight=False, markup=False)
    dtypes = ", ".join(sorted({one.tensor.dtype for one in audit.tensors})) or "no floats"
    out.print(f"{audit.source} ({dtypes}): {audit.verdict}.")
    if audit.tensors:
        out.print(
            f"Room to scale all of them: {_room(audit.total)}. Up, until one overflows; down, until more than "
            f"{ROOM_SHARE:.1%} are below 2^{audit.total.floor}, where float16 drops bits."
        )
        groups = sorted(audit.groups, key=_worst_first)
        out.print(_table(groups[:_MOST_ROWS]))
        if rest := groups[_MOST_ROWS:]:
            out.print(f"... and {len(rest)} rows more, with an inexact share of at most {_share(_worst(rest))}")
    for line in _remarks(audit):
        out.print(line)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def _remarks(audit: Audit) -> Iterator[str]:
    for one in audit.overflowing[:_MOST_NAMES]:
        yield f"overflows: {one.tensor.name}, {one.census.overflowing:,} weights, up to {one.census.largest:.6g}"
    if (more := len(audit.overflowing) - _MOST_NAMES) > 0:
        yield f"... and {more} tensors more that overflow"
    broken = [one for one in audit.tensors if one.census.infinite or one.census.nan]
    for one in broken[:_MOST_NAMES]:
        yield f"not finite as saved: {one.tensor.name}, {one.census.infinite:,} infinite, {one.census.nan:,} NaN"
    if (more := len(broken) - _MOST_NAMES) > 0:
        yield f"... and {more} tensors more that are not finite"
    if audit.left_alone:
        kinds = ", ".join(sorted({one.dtype for one in audit.left_alone}))
        yield f"left alone: {len(audit.left_alone)} tensors in {kinds}"


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


def _table(groups: list[Group]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("tensors", overflow="fold")
    for title in ("count", "weights", "overflow", "inexact", "vanish", "largest", "room"):
        table.add_column(title, justify="right", no_wrap=True)
    for group in groups:
        census = group.census
        table.add_row(
            group.pattern,
            str(len(group.tensors)),
            f"{census.elements:,}",
            f"{census.overflowing:,}" if census.overflowing else "-",
            _share(census.inexact_share),
            f"{census.vanishing:,}" if census.vanishing else "-",
            f"{census.largest:.4g}",
            _room(census),
        )
    return table


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
    groups = audit.groups
    bottom = _TOP + _ROW * len(groups)
    parts = [f'<text x="6" y="18" font-weight="bold">{escape(audit.source)}: weights against float16</text>']
    parts += _limits(bottom)
    for place, group in enumerate(groups):
        parts += _picture_row(group, _TOP + _ROW * place)
    for exponent in range(-30, _HIGHEST + 1, 6):
        parts.append(
            f'<text x="{_x(exponent):.1f}" y="{bottom + 18}" text-anchor="middle" font-size="10">2^{exponent}</text>'
        )
    caption = "|weight|: all of them (line), all but 1 % at either end (bar)"
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">{caption}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 30} {bottom + 48}" '
        f'font-family="sans-serif" font-size="12">\n{chr(10).join(parts)}\n</svg>\n'
    )


def _x(exponent: float) -> float:
    within = min(max(exponent, _LOWEST), _HIGHEST)
    return _LEFT + (within - _LOWEST) / (_HIGHEST - _LOWEST) * _WIDTH


def _limits(bottom: int) -> Iterator[str]:
    limits = (
        (-24.0, "2^-24: smallest", 36, "middle"),
        (-17.0, "2^-17: bfloat16 is exact", 50, "end"),
        (-14.0, "2^-14: 11 bits", 36, "middle"),
        (math.log2(LARGEST), f"{LARGEST:.0f}: largest", 36, "middle"),
    )
    for exponent, name, y, anchor in limits:
        x = _x(exponent)
        yield f'<path d="M{x:.1f} {y + 4}V{bottom}" stroke="{_LINE}" stroke-dasharray="3 3"/>'
        yield f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="10">{name}</text>'


def _picture_row(group: Group, top: int) -> Iterator[str]:
    census = group.census
    colour = _FITS if census.fits else _OVERFLOWS
    told = (
        f"{_label(group)}: {census.smallest:.3g} to {census.largest:.4g}, {census.overflowing:,} overflow, "
        f"{census.inexact:,} of {census.elements:,} inexact, {census.vanishing:,} vanish"
    )
    yield f'<g class="group"><title>{escape(told)}</title>'
    yield f'<text x="{_LEFT - 8}" y="{top + 14}" text-anchor="end" font-size="11">{escape(_label(group))}</text>'
    low, high = census.quantile(0.01), census.quantile(0.99)
    if low is not None and high is not None:
        first, last = _x(math.log2(census.smallest)), _x(math.log2(census.largest))
        yield f'<path d="M{first:.1f} {top + 10}H{max(last, first + 1):.1f}" stroke="{colour}"/>'
        bar = f'x="{_x(low):.1f}" y="{top + 4}" width="{max(_x(high) - _x(low), 2):.1f}" height="12"'
        yield f'<rect {bar} fill="{colour}" fill-opacity="0.6"/>'
    yield "</g>"
