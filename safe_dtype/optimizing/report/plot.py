"""The picture of an optimization, as SVG by hand: how far every form drifts, and how long it takes. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from ...facts import Dtype
from ..nouns.record import DtypeVerdict, Form, FormAttempt, Optimization, Outcome
from .choose import gain_of

_ROW, _TOP, _LEFT = 30, 76, 260  # in the picture's units
_DRIFT_WIDTH, _TIME_WIDTH, _GAP, _ROOM = 330, 250, 50, 60  # _ROOM is for the figure at the end of a bar
_LOWEST, _HIGHEST = -8, 0  # powers of ten at the edges of the drift; what is beyond is drawn at the edge
_TIME_LEFT = _LEFT + _DRIFT_WIDTH + _GAP
_BY_DTYPE, _BY_FORM, _TIME, _CHOSEN, _LINE, _FAINT = "#7a8b99", "#1f6f8b", "#5b8c5a", "#1f6f8b", "#b3552d", "#ddd"


@dataclass(frozen=True, slots=True)
class _Row:
    """One form in one dtype, as it is drawn."""

    name: str
    chosen: bool
    by_dtype: float | None  # relative error of eager in the dtype, from eager in float32
    by_form: float | None  # relative error of the form, from eager in the dtype; the worst stage
    limit: float | None  # for `by_form`
    time: float | None  # of a call, eager float32 being 1


def report_svg(found: Optimization) -> str:
    """Return the picture: a row for every attempt that answered, its errors on a log scale, and its time.

    An attempt that was not verified has no time: it is drawn where it came to answer something wrong.
    """
    rows = list(_rows(found))
    bottom = _TOP + max(1, len(rows)) * _ROW
    slowest = max([1.0, *(row.time for row in rows if row.time is not None)])
    shapes = [*_frame(f"{found.source} on {found.device}", bottom, slowest)]
    for place, row in enumerate(rows):
        shapes += _drawn(row, _TOP + place * _ROW, slowest)
    if not rows:
        shapes.append(_text(_LEFT, _TOP + 18, "No attempt came to an answer."))
    width, height = _TIME_LEFT + _TIME_WIDTH + _ROOM, bottom + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>{"".join(shapes)}</svg>\n'
    )


def _rows(found: Optimization) -> Iterator[_Row]:
    verdicts = {one.dtype: one for one in found.dtypes}
    for number, one in enumerate(found.attempts):
        by_form = max((stage.distance.relative for stage in one.stages), default=None)
        if by_form is None:
            continue
        with_what = (
            f" ({', '.join(remedy.partition('=')[2] or remedy for remedy in one.remedies)})" if one.remedies else ""
        )
        wrong = "" if one.outcome is Outcome.VERIFIED else f", {one.outcome}"
        yield _Row(
            f"{number} {one.form} {one.dtype}{with_what}{wrong}",
            number == found.chosen,
            _by_dtype(verdicts.get(one.dtype)),
            None if one.form is Form.EAGER else by_form,
            None if one.form is Form.EAGER else _limit(one.dtype),
            _time(one, verdicts),
        )


def _by_dtype(verdict: DtypeVerdict | None) -> float | None:
    return verdict.distance.relative if verdict is not None and verdict.distance is not None else None


def _time(one: FormAttempt, verdicts: dict[Dtype, DtypeVerdict]) -> float | None:
    return 1 / gain_of(one, verdicts) if one.seconds.run and one.outcome is Outcome.VERIFIED else None


def _limit(dtype: Dtype) -> float:
    from ..attempts.limits import LARGEST_RELATIVE  # the one place that has it, and it needs torch

    return LARGEST_RELATIVE.get(dtype, min(LARGEST_RELATIVE.values()))


def _frame(title: str, bottom: int, slowest: float) -> Iterator[str]:
    yield _text(6, 18, title, weight="bold")
    yield _text(_LEFT, 36, "relative error", weight="bold")
    keys = (("of the dtype", _BY_DTYPE, 96), ("of the form", _BY_FORM, 172), ("limit of the form", _LINE, 242))
    yield from (_text(_LEFT + x, 36, key, fill=colour) for key, colour, x in keys)
    yield _text(_TIME_LEFT, 36, "time of a call, eager float32 = 1", weight="bold")
    for power in range(_LOWEST, _HIGHEST + 1, 2):
        x = _x_of_drift(10.0**power)
        yield _line(x, _TOP - 12, bottom, _FAINT)
        yield _text(x, _TOP - 16, f"1e{power}" if power else "1", anchor="middle")
    for share in (0.0, 1.0, *((slowest,) if slowest >= 1.2 else ())):
        x = _x_of_time(share, slowest)
        yield _line(x, _TOP - 12, bottom, _LINE if share == 1 else _FAINT, dashed=share == 1)
        yield _text(x, _TOP - 16, f"{share:.3g}", anchor="middle")
    yield _text(_LEFT, bottom + 18, f"At the left edge: 1e{_LOWEST} and less, exact results too.", fill=_BY_DTYPE)


def _drawn(row: _Row, y: int, slowest: float) -> Iterator[str]:
    weight = "bold" if row.chosen else "normal"
    yield _text(_LEFT - 8, y + 17, ("▶ " if row.chosen else "") + row.name, anchor="end", weight=weight)
    for error, colour, top in ((row.by_dtype, _BY_DTYPE, y + 4), (row.by_form, _BY_FORM, y + 14)):
        if error is not None:
            x = _x_of_drift(error)
            yield f'<rect x="{_LEFT}" y="{top}" width="{max(1.0, x - _LEFT):.1f}" height="8" fill="{colour}"/>'
            yield _text(x + 4, top + 8, f"{error:.2g}")
    if row.limit is not None:
        x = _x_of_drift(row.limit)
        yield f'<path d="M{x:.1f} {y + 12}v12" stroke="{_LINE}" stroke-width="2"/>'
    if row.time is not None:
        x = _x_of_time(row.time, slowest)
        colour = _CHOSEN if row.chosen else _TIME
        yield f'<rect x="{_TIME_LEFT}" y="{y + 6}" width="{max(1.0, x - _TIME_LEFT):.1f}" height="14" fill="{colour}"/>'
        yield _text(x + 4, y + 17, f"{row.time:.2f}")


def _x_of_drift(error: float) -> float:
    power = math.log10(error) if error > 0 else _LOWEST
    return _LEFT + (min(max(power, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST) * _DRIFT_WIDTH


def _x_of_time(share: float, slowest: float) -> float:
    return _TIME_LEFT + share / slowest * _TIME_WIDTH


def _line(x: float, top: int, bottom: int, colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' * dashed
    return f'<path d="M{x:.1f} {top}V{bottom}" stroke="{colour}"{dashes}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", fill: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}"'
        f">{escape(text)}</text>"
    )
