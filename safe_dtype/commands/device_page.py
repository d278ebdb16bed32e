"""A measured device as a page: what each dtype is worth on it, operation by operation, and what torch claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..devices.probing.verdicts import SLOW
from ..facts import DeviceFacts, LearnedFailure, Verdict, VerdictKind
from ..rendering.bar_chart import ChartBar, ChartRow, bar_chart, even_steps, linear_axis
from ..rendering.html_page import (
    Cell,
    Tag,
    Tone,
    aside,
    bullets,
    folded,
    heading,
    html_page,
    lead,
    page_table,
    prose,
    section,
)
from ..rendering.shared_reasons import without_parts
from ..rendering.tables import Column
from ..rendering.units import bytes_text, digits_text
from .doctor import device_notes, said_once

_TONES: dict[VerdictKind, Tone] = {
    VerdictKind.NATIVE: "good", VerdictKind.SLOW: "fair", VerdictKind.WRONG: "bad", VerdictKind.UNSUPPORTED: "bad",
    VerdictKind.CRASHES: "bad", VerdictKind.UNKNOWN: "none",
}  # fmt: skip
_MEANINGS = (
    f"1 row is a new token, 512 rows are a prompt. native: right, and about as fast as float32, or faster. slow: right, and takes more than {SLOW:g} times float32's time. "
    "wrong: it runs, and the numbers are off by more than the format's own rounding. unsupported: an error. crashes: it ends "
    "the process, or never returns."
)
_COLUMNS = (
    Column("dtype"), Column("operation"), Column("verdict"), Column("1 row", number=True),
    Column("512 rows", number=True), Column("largest error", number=True), Column("reason", wraps=True),
)  # fmt: skip


def devices_page(devices: Iterable[tuple[DeviceFacts, Iterable[LearnedFailure]]]) -> str:
    """Return the page of devices, each with what guarded runs have learned on it."""
    known = [(facts, tuple(lessons)) for facts, lessons in devices]
    names = ", ".join(facts.name for facts, _ in known)
    parts = [lead("What each number format is worth here: measured, not looked up.")] if known else []
    parts += [device_section(facts, lessons) for facts, lessons in known]
    return html_page(f"Number formats on {names or 'no device'}", parts, made_by="safe-dtype doctor --html FILE")


def device_section(facts: DeviceFacts, lessons: Iterable[LearnedFailure] = ()) -> str:
    """Return what is known of a device as a section of a page."""
    memory = facts.memory
    basis = "Measured here." if facts.measured else "Not measured: from the table of what others have published."
    about = [
        f"{bytes_text(memory.free_bytes)} free of {bytes_text(memory.total_bytes)} (limited by {memory.limited_by})"
        if memory.total_bytes
        else "its memory is not known",
        facts.capability and f"capability {facts.capability}",
        facts.driver and f"driver {facts.driver}",
        facts.family and f"known as {facts.family}",
    ]
    learned = [f"{one.checkpoint} in {one.dtype}: {one.cause}" for one in lessons if one.checkpoint is not None]
    claims = list(_claims(facts))
    settings = ", ".join(f"{name}={value}" for name, value in (*facts.settings, *facts.versions))
    return section(
        f"{facts.name} ({facts.device})" if facts.name != facts.device else facts.name,
        prose(f"{basis} {', '.join(filter(None, about))}."),
        _rates(facts),
        heading("Verdicts") if facts.verdicts else "",
        page_table(_COLUMNS, (_row(verdict, said_once(facts)) for verdict in facts.verdicts)),
        aside(_MEANINGS, *device_notes(facts)) if facts.verdicts else "",
        heading("What torch claims") + page_table((Column("asked"), Column("answer"), Column("measured")), claims)
        if claims
        else "",
        folded(f"Failed in earlier guarded runs, and avoided since: {len(learned)}", bullets(learned))
        if learned
        else "",
        aside(f"With {settings}." if settings else ""),
    )


def _rates(facts: DeviceFacts) -> str:
    """Return two charts: how fast weights are read for one token, and how fast a prompt is multiplied."""
    products = [verdict for verdict in facts.verdicts if verdict.op == "matmul"]
    charts = (
        ("One token: weights read by products of matrices, GB/s (linear scale, more is faster)", "decode_bytes_per_s", 3, "GB/s"),
        ("A prompt: products of matrices with 512 rows, Gflop/s (linear scale, more is faster)", "prefill_flops_per_s", 4, "Gflop/s"),
    )  # fmt: skip
    return "".join(_rate_chart(products, *chart) for chart in charts)


def _rate_chart(verdicts: list[Verdict], name: str, field: str, digits: int, written: str) -> str:
    rates = [(verdict, rate / 1e9) for verdict in verdicts if (rate := getattr(verdict, field))]
    if len(rates) < 2:
        return ""
    largest = max(rate for _, rate in rates)
    rows = [
        ChartRow(
            str(verdict.dtype),
            (ChartBar(0, 100 * rate / largest, 1),),
            f"{digits_text(rate, digits)} {written}",
            verdict.reason,
        )
        for verdict, rate in rates
    ]
    axis = linear_axis(largest, name, ((value, digits_text(value, 4)) for value in even_steps(largest)))
    return bar_chart(rows, (), axis)


def _row(verdict: Verdict, shared: Sequence[str]) -> tuple[Cell, ...]:
    read, multiply, error = verdict.decode_bytes_per_s, verdict.prefill_flops_per_s, verdict.max_rel_error
    return (
        verdict.dtype.name,
        verdict.op,
        Tag(str(verdict.kind), _TONES[verdict.kind]),
        f"{digits_text(read / 1e9)} GB/s" if read else "",
        f"{digits_text(multiply / 1e9, 4)} Gflop/s" if multiply else "",
        "" if error is None else f"{error:.1e}",
        without_parts(verdict.reason, shared),
    )


def _claims(facts: DeviceFacts) -> Iterator[tuple[Cell, ...]]:
    for claim in facts.claims:
        yield claim.question, claim.answer, Tag(claim.disagreement, "bad") if claim.disagreement else "agrees"
