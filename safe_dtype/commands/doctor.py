"""A measured device as a page for people, and as plain values. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..facts import DeviceFacts, LearnedFailure, Verdict
from ..rendering.shared_reasons import shared_parts, without_parts
from ..rendering.tables import Column, page, table
from ..rendering.units import bytes_text, digits_text

_COLUMNS = (
    *(Column(title) for title in ("dtype", "operation", "verdict")),
    *(Column(title, number=True) for title in ("1 row", "512 rows", "max error")),
    Column("reason", wraps=True),
)


def device_text(facts: DeviceFacts, *, width: int) -> str:
    """Return what `facts` says: the device in a few lines, one row a verdict, one line a claim of torch."""
    verdicts = table(_COLUMNS, (_row(verdict, said_once(facts)) for verdict in facts.verdicts))
    claims = (
        f"{claim.question} says {claim.answer}"
        + (f"  <- disagrees: {claim.disagreement}" if claim.disagreement else "")
        for claim in facts.claims
    )
    return page([_headline(facts), verdicts, *device_notes(facts), *claims], width=width)


def said_once(facts: DeviceFacts) -> tuple[str, ...]:
    """Return the parts of reasons that all verdicts share which were timed."""
    return shared_parts(verdict.reason for verdict in facts.verdicts if verdict.timings)


def device_notes(facts: DeviceFacts) -> tuple[str, ...]:
    """Return what stands below the table of verdicts, for it holds for all that were timed."""
    return tuple(f"{part[0].upper()}{part[1:]}, in every row." for part in said_once(facts))


def device_to_dict(facts: DeviceFacts, learned: Iterable[LearnedFailure] = ()) -> dict[str, Any]:
    """Return `facts` as plain values, dtypes by name, with `learned` where there is anything.

    `products` and `published` are left out: doctor asks each device by itself, and measures it.
    """
    verdicts = [
        {**asdict(verdict), "dtype": verdict.dtype.name, "kind": str(verdict.kind)} for verdict in facts.verdicts
    ]
    fields = {name: value for name, value in asdict(facts).items() if name not in ("products", "published")}
    lessons = [failure.as_dict() for failure in learned]
    return fields | ({"learned": lessons} if lessons else {}) | {
        "verdicts": verdicts, "prior_order": [dtype.name for dtype in facts.prior_order],
        "versions": dict(facts.versions), "settings": dict(facts.settings),
    }  # fmt: skip


def learned_text(lessons: Iterable[LearnedFailure]) -> str:
    """Return what guarded runs have learned on a device, a line each; nothing where nothing is planned around."""
    lines = [f"  {one.checkpoint} in {one.dtype}: {one.cause}" for one in lessons if one.checkpoint is not None]
    head = "failed in earlier guarded runs, and avoided since (`safe-dtype doctor --refresh` forgets it):"
    return "\n".join([head, *lines]) if lines else ""


def _headline(facts: DeviceFacts) -> str:
    memory = facts.memory
    words = [
        f"{facts.device}: {facts.name}",
        facts.capability and f"capability {facts.capability}",
        facts.driver and f"driver {facts.driver}",
        f"{bytes_text(memory.free_bytes)} free of {bytes_text(memory.total_bytes)} (limited by {memory.limited_by})",
    ]
    basis = "measured here" if facts.measured else "not measured: from the prior table"
    family = f"; prior table: {facts.family}" if facts.family else ""
    settings = "".join(f"\n{name}={value}" for name, value in facts.settings)
    return ", ".join(filter(None, words)) + f"\n{basis}{family}{settings}"


def _row(verdict: Verdict, shared: Sequence[str]) -> tuple[str, ...]:
    read, multiply, error = verdict.decode_bytes_per_s, verdict.prefill_flops_per_s, verdict.max_rel_error
    return (
        verdict.dtype.name,
        verdict.op,
        str(verdict.kind),
        f"{digits_text(read / 1e9)} GB/s" if read else "-",
        f"{digits_text(multiply / 1e9, 4)} Gflop/s" if multiply else "-",
        "-" if error is None else f"{error:.1e}",
        without_parts(verdict.reason, shared),
    )
