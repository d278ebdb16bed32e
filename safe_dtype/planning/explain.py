"""A plan as a table that a person likes to read."""

from __future__ import annotations

from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..facts import bytes_text, seconds_text
from .plan import Decision, Plan


def plan_text(plan: Plan, *, width: int) -> str:
    """Return the plan: what is loaded and why in one line, then one row a candidate."""
    text = StringIO()
    out = Console(file=text, width=width, color_system=None, highlight=False, markup=False)
    out.print(_headline(plan))
    out.print(_table(plan))
    for warning in plan.warnings:
        out.print(f"warning: {warning}")
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def _headline(plan: Plan) -> str:
    where = plan.device_name if plan.device_name == plan.device else f"{plan.device_name} ({plan.device})"
    basis = "" if plan.measured else "\nNobody measured this device here: planned from the prior table."
    if plan.quantization:
        return f"{plan.source} on {where}: {plan.reason}.{basis}"
    layout = plan.routes.layout if plan.routes and plan.routes.layout != "plain" else None
    extras = "".join(
        f", {name}={value}"
        for name, value in (
            ("layout", layout), ("attn_implementation", plan.attention), ("device_map", plan.device_map)
        )
        if value
    )  # fmt: skip
    chosen = plan.chosen.candidate if plan.chosen else plan.storage
    return f"{plan.source} (saved in {plan.saved}) on {where}: {chosen}{extras}\nbecause: {plan.reason}.{basis}"


def _table(plan: Plan) -> Table:
    workload = plan.policy.workload
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("stored", no_wrap=True)
    table.add_column("computed", no_wrap=True)
    table.add_column(f"{workload.prompt_tokens} in", justify="right", no_wrap=True)
    table.add_column(f"{workload.new_tokens} out", justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("reason")
    for decision in sorted(plan.decisions, key=lambda one: (one is not plan.chosen, not one.accepted)):
        table.add_row(*_row(decision, chosen=decision is plan.chosen))
    return table


def _row(decision: Decision, *, chosen: bool) -> tuple[str, ...]:
    cost = decision.cost
    return (
        "->" if chosen else "",
        str(decision.candidate.storage),
        "" if decision.candidate.storage == decision.candidate.compute else str(decision.candidate.compute),
        _seconds(cost.prefill_seconds),
        _seconds(cost.decode_seconds),
        bytes_text(cost.bytes),
        "accepted" if decision.ground is None else f"rejected: {decision.ground}",
        decision.reason,
    )


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else seconds_text(seconds)
