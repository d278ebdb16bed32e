"""The picture of an optimization, as SVG: how far every form drifts, and how long it takes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...facts import Dtype
from ...rendering.svg import BLUE, BROWN, FAINT, GREEN, GREY, LogScale, bar, document, legend, text, vertical
from ..nouns.record import EAGER, DtypeVerdict, FormAttempt, Optimization, Outcome
from .choose import gain_of

_ROW, _TOP, _LEFT = 30, 76, 260  # in the picture's units
_DRIFT_WIDTH, _TIME_WIDTH, _GAP, _ROOM = 330, 250, 50, 60  # _ROOM is for the figure at the end of a bar
_LOWEST, _HIGHEST = -8, 0  # powers of ten at the edges of the drift; what is beyond is drawn at the edge
_TIME_LEFT = _LEFT + _DRIFT_WIDTH + _GAP
_BY_DTYPE, _BY_FORM, _TIME, _CHOSEN, _LIMIT = GREY, BLUE, GREEN, BLUE, BROWN
_DRIFT = LogScale(10, _LOWEST, _HIGHEST, _LEFT, _LEFT + _DRIFT_WIDTH)


@dataclass(frozen=True, slots=True)
class FormRow:
    """One form in one dtype, as it is drawn."""

    name: str
    chosen: bool
    by_dtype: float | None  # relative error of eager in the dtype, from eager in float32
    by_form: float | None  # relative error of the form, from eager in the dtype; the worst stage
    limit: float | None  # for `by_form`
    time: float | None  # of a call, eager float32 being 1


def report_svg(record: Optimization) -> str:
    """Return the picture: a row for every attempt with outputs, its errors on a log scale, and its time.

    An attempt that is wrong is drawn without a time.
    """
    rows = list(form_rows(record))
    bottom = _TOP + max(1, len(rows)) * _ROW
    slowest = max([1.0, *(row.time for row in rows if row.time is not None)])
    elements = [*_frame(bottom, slowest)]
    for place, row in enumerate(rows):
        elements += _drawn(row, _TOP + place * _ROW, slowest)
    if not rows:
        elements.append(text(_LEFT, _TOP + 18, "No attempt gave outputs."))
    title = f"{record.source} on {record.device}"
    return document(_TIME_LEFT + _TIME_WIDTH + _ROOM, bottom + 30, elements, title=title)


def form_rows(record: Optimization) -> Iterator[FormRow]:
    """Yield every attempt with outputs, in the order of the record."""
    verdicts = {verdict.dtype: verdict for verdict in record.dtypes}
    for number, attempt in enumerate(record.attempts):
        by_form = max((stage.distance.relative for stage in attempt.stages), default=None)
        if by_form is None:
            continue
        with_what = (
            f" ({', '.join(remedy.partition('=')[2] or remedy for remedy in attempt.remedies)})"
            if attempt.remedies
            else ""
        )
        wrong = "" if attempt.outcome is Outcome.VERIFIED else f", {attempt.outcome}"
        yield FormRow(
            f"{number} {attempt.form} {attempt.dtype}{with_what}{wrong}",
            number == record.chosen,
            _by_dtype(verdicts.get(attempt.dtype)),
            None if attempt.form == EAGER else by_form,
            None if attempt.form == EAGER else _limit(attempt.dtype),
            _time(attempt, verdicts),
        )


def _by_dtype(verdict: DtypeVerdict | None) -> float | None:
    return verdict.distance.relative if verdict is not None and verdict.distance is not None else None


def _time(attempt: FormAttempt, verdicts: dict[Dtype, DtypeVerdict]) -> float | None:
    return 1 / gain_of(attempt, verdicts) if attempt.seconds.run and attempt.outcome is Outcome.VERIFIED else None


def _limit(dtype: Dtype) -> float:
    from ..attempts.limits import LARGEST_RELATIVE  # imported here, because it loads torch

    return LARGEST_RELATIVE.get(dtype, min(LARGEST_RELATIVE.values()))


def _frame(bottom: int, slowest: float) -> Iterator[str]:
    yield text(_LEFT, 36, "relative error", bold=True)
    keys = (("of the dtype", _BY_DTYPE, 96), ("of the form", _BY_FORM, 172), ("limit of the form", _LIMIT, 242))
    yield from legend(36, ((_LEFT + x, words, colour) for words, colour, x in keys))
    yield text(_TIME_LEFT, 36, "time of a call, eager float32 = 1", bold=True)
    for x, label in _DRIFT.ticks(2):
        yield vertical(x, _TOP - 12, bottom, FAINT)
        yield text(x, _TOP - 16, label, anchor="middle")
    for share in (0.0, 1.0, *((slowest,) if slowest >= 1.2 else ())):
        x = _x_of_time(share, slowest)
        yield vertical(x, _TOP - 12, bottom, _LIMIT if share == 1 else FAINT, style="dashed" if share == 1 else "thin")
        yield text(x, _TOP - 16, f"{share:.3g}", anchor="middle")
    yield text(_LEFT, bottom + 18, f"At the left edge: 1e{_LOWEST} and less, exact results too.", colour=_BY_DTYPE)


def _drawn(row: FormRow, y: int, slowest: float) -> Iterator[str]:
    yield text(_LEFT - 8, y + 17, ("▶ " if row.chosen else "") + row.name, anchor="end", bold=row.chosen)
    for error, colour, top in ((row.by_dtype, _BY_DTYPE, y + 4), (row.by_form, _BY_FORM, y + 14)):
        if error is not None:
            x = _DRIFT.place(error)
            yield bar(_LEFT, x, top, 8, colour)
            yield text(x + 4, top + 8, f"{error:.2g}")
    if row.limit is not None:
        yield vertical(_DRIFT.place(row.limit), y + 12, y + 24, _LIMIT, style="thick")
    if row.time is not None:
        x = _x_of_time(row.time, slowest)
        yield bar(_TIME_LEFT, x, y + 6, 14, _CHOSEN if row.chosen else _TIME)
        yield text(x + 4, y + 17, f"{row.time:.2f}")


def _x_of_time(share: float, slowest: float) -> float:
    return _TIME_LEFT + share / slowest * _TIME_WIDTH
