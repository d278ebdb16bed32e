"""An optimization as a page: what was reached, every form with its drift and its time, and why the others are not used."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...rendering.bar_chart import ChartBar, ChartRow, Mark, bar_chart, even_steps, linear_axis, log_axis
from ...rendering.html_page import (
    Cell,
    Tag,
    Tone,
    aside,
    commands,
    html_page,
    lead,
    page_table,
    prose,
    section,
    sentence,
)
from ...rendering.svg import LogScale
from ...rendering.tables import Column
from ...rendering.units import bytes_text, seconds_text
from ..nouns.record import DtypeVerdict, FormAttempt, Optimization, Outcome, Status
from .answered_inputs import traced_tensors
from .plot import FormRow, form_rows
from .report import HEADLINES, command_of

_ERRORS = LogScale(10, -8, 0, 0, 100)
_NOT_FINITE = "not finite"
_TONES: dict[Outcome, Tone] = {Outcome.VERIFIED: "good", Outcome.SKIPPED: "none", Outcome.WRONG: "bad"}
_OF_STATUS: dict[Status, Tone] = {Status.REACHED: "good", Status.FELL_BACK: "fair", Status.NO_DTYPE: "bad"}
_DTYPES = (
    Column("dtype"), Column("largest error, relative", number=True), Column("KL, nats", number=True),
    Column("one call", number=True), Column("times as fast as float32", number=True), Column("verdict"),
)  # fmt: skip
_ATTEMPTS = (
    Column("no.", number=True), Column("form"), Column("dtype"), Column("outcome"),
    Column("error of the form", number=True), Column("build", number=True), Column("one call", number=True),
    Column("times as fast as eager", number=True), Column("files", number=True), Column("reason", wraps=True),
)  # fmt: skip


def report_page(record: Optimization) -> str:
    """Return the page of an optimization."""
    rows = list(form_rows(record))
    status = Tag(f"{HEADLINES[record.status]}.", _OF_STATUS[record.status])
    model = record.model_class or "a plain module"
    attempts = (_attempt(number, one, record) for number, one in enumerate(record.attempts))
    parts = [
        lead(status, sentence(record.why or "No reason was recorded")),
        prose(
            f"{model}, {record.parameters:,} parameters, saved in {record.saved_dtype}, on {record.device}. "
            f"Asked for: form {record.asked_form}, dtype {record.asked_dtype}."
        ),
        section("How long a call takes", _times(rows)),
        section("How far each form drifts", _drifts(rows)),
        section(
            "Dtypes",
            prose(
                "The model as it is (eager), in each dtype, compared with eager in float32: the error of the dtype alone."
            ),
            page_table(_DTYPES, map(_dtype, record.dtypes)),
        )
        if record.dtypes
        else "",
        section("Attempts", page_table(_ATTEMPTS, attempts), aside(_about_attempts(record)))
        if record.attempts
        else "",
        section("Use it", *_use(record)),
    ]
    return html_page(f"{record.source}, optimized", parts, made_by=command_of(record))


def _times(rows: list[FormRow]) -> str:
    timed = [(row, row.time) for row in rows if row.time is not None]
    if not timed:
        return ""
    largest = max(1.0, *(time for _, time in timed))
    bars = [
        ChartRow(row.name, (ChartBar(0, 100 * time / largest, 1),), f"{time:.2f}", is_chosen=row.chosen)
        for row, time in timed
    ]
    axis = linear_axis(
        largest, "Time of a call of each verified form, eager in float32 is 1 (linear scale, less is faster)",
        ((value, f"{value:g}") for value in even_steps(largest)),
    )  # fmt: skip
    return bar_chart(bars, (), axis, marks=(Mark(100 / largest, "eager in float32"),))


def _drifts(rows: list[FormRow]) -> str:
    bars = []
    for row in rows:
        pairs = ((0, row.by_dtype), (1, row.by_form))
        limit = f", limit {row.limit:.0e}" if row.limit is not None else ""
        figure = f"{_error(row.by_dtype)}, {_error(row.by_form)}{limit}"
        lanes = tuple(ChartBar(0, _ERRORS.place(error), key, lane=key) for key, error in pairs if error is not None)
        bars.append(ChartRow(row.name, lanes, figure, is_chosen=row.chosen))
    axis = log_axis(
        _ERRORS, "Largest difference over the largest output (no unit; logarithmic, powers of ten)", step=2
    )
    chart = bar_chart(bars, ("of the dtype, from eager in float32", "of the form, from eager in the same dtype"), axis)
    note = "The figures are the two errors of a row, then the most that the form may have. At the left edge: 1e-8 and less."
    return chart + aside(note) if chart else ""


def _error(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-" if value is None else _NOT_FINITE
    return f"{value:.1e}" if value else "0"


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else _NOT_FINITE


def _dtype(verdict: DtypeVerdict) -> tuple[Cell, ...]:
    far = verdict.distance
    return (
        str(verdict.dtype),
        "" if far is None else _two_digits(far.relative),
        "" if far is None or far.kl is None else _two_digits(far.kl),
        "" if verdict.seconds is None else seconds_text(verdict.seconds),
        "" if verdict.speedup is None else f"{verdict.speedup:.2f}",
        Tag(verdict.problem, "bad") if verdict.problem else Tag("passes", "good"),
    )


def _attempt(number: int, attempt: FormAttempt, record: Optimization) -> tuple[Cell, ...]:
    errors = [stage.distance.relative for stage in attempt.stages]
    seconds = attempt.seconds
    outcome = "chosen" if number == record.chosen else str(attempt.outcome)
    with_what = f" with {', '.join(attempt.remedies)}" if attempt.remedies else ""
    return (
        str(number),
        f"{attempt.form}{with_what}",
        str(attempt.dtype),
        Tag(outcome, _TONES.get(attempt.outcome, "bad")),
        _two_digits(max(errors)) if errors else "",
        "" if seconds.build is None else seconds_text(seconds.build),
        "" if seconds.run is None else seconds_text(seconds.run),
        "" if attempt.speedup is None else f"{attempt.speedup:.2f}",
        bytes_text(attempt.bytes) if attempt.bytes else "",
        attempt.reason,
    )


def _about_attempts(record: Optimization) -> str:
    chosen = f" Attempt {record.chosen} is what load_optimized loads." if record.chosen is not None else ""
    return f"A form and eager in the same dtype are timed in turns, in one process.{chosen} More in report.md beside this page."


def _use(record: Optimization) -> Iterator[str]:
    if record.winner is None:
        yield prose("There is no form to load. The model is as it was.")
    else:
        call = ", ".join(f"{name}={name}" for name in traced_tensors(record)) or "**inputs"
        yield commands(
            "from safe_dtype import load_optimized", "", 'model = load_optimized("DIR")  # this folder',
            f"outputs = model({call})  # tensors by name",
        )  # fmt: skip
    yield prose("To repeat all this:")
    yield commands(command_of(record))
