"""A measured device as a page for people, and as plain values. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..facts import DeviceFacts, Verdict, bytes_text


def device_text(facts: DeviceFacts, *, width: int) -> str:
    """Return what `facts` says: the device in a few lines, one row a verdict, one line a claim of torch."""
    text = StringIO()
    out = Console(file=text, width=width, color_system=None, highlight=False, markup=False)
    out.print(_headline(facts))
    out.print(_table(facts))
    for claim in facts.claims:
        found = f"  <- disagrees: {claim.disagreement}" if claim.disagreement else ""
        out.print(f"{claim.question} says {claim.answer}{found}")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def device_to_dict(facts: DeviceFacts) -> dict[str, Any]:
    """Return `facts` as plain values, dtypes by name."""
    found = asdict(facts)
    found["verdicts"] = [{**asdict(one), "dtype": one.dtype.name, "kind": str(one.kind)} for one in facts.verdicts]
    found["prior_order"] = [dtype.name for dtype in facts.prior_order]
    found["versions"], found["settings"] = dict(facts.versions), dict(facts.settings)
    return found


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


def _table(facts: DeviceFacts) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("dtype", "operation", "verdict"):
        table.add_column(title, no_wrap=True)
    for title in ("1 row", "512 rows", "max error"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("reason")
    for verdict in facts.verdicts:
        table.add_row(*_row(verdict))
    return table


def _row(verdict: Verdict) -> tuple[str, ...]:
    read, multiply, error = verdict.decode_bytes_per_s, verdict.prefill_flops_per_s, verdict.max_rel_error
    return (
        verdict.dtype.name,
        verdict.op,
        str(verdict.kind),
        f"{read / 1e9:.3g} GB/s" if read else "-",
        f"{multiply / 1e9:.4g} Gflop/s" if multiply else "-",
        "-" if error is None else f"{error:.1e}",
        verdict.reason,
    )
