"""A plan as a table for people."""

from __future__ import annotations

from ..rendering.tables import Column, page, table
from ..rendering.units import bytes_text, seconds_text
from .plan import Decision, Plan


def plan_text(plan: Plan, *, width: int) -> str:
    """Return the plan: what is loaded and why in one line, then one row a candidate."""
    workload = plan.policy.workload
    columns = (
        Column("", wraps=True),
        Column("stored"),
        Column("computed"),
        Column(f"{workload.prompt_tokens} in", number=True),
        Column(f"{workload.new_tokens} out", number=True),
        Column("memory", number=True),
        Column("verdict"),
        Column("reason", wraps=True),
    )
    decisions = sorted(plan.decisions, key=lambda decision: (decision is not plan.chosen, not decision.accepted))
    rows = [_row(decision, chosen=decision is plan.chosen) for decision in decisions]
    warnings = (f"warning: {warning}" for warning in plan.warnings)
    rounded = [f"rounded on loading: {plan.rounded}: {plan.rounded.names}"] if plan.rounded else []
    return page([_headline(plan), table(columns, rows), *rounded, *warnings], width=width)


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
