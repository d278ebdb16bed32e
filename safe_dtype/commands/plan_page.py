"""A plan as a page: what is loaded and why, every candidate with its time and memory, and what would fit."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from ..devices import facts_of, prior_facts
from ..planning import Decision, Plan
from ..planning.explain import plan_notes, plan_rows, plan_ways, rows_word
from ..planning.plan import best_first, fate
from ..planning.time_bars import timed_first
from ..rendering.bar_chart import ChartBar, ChartRow, bar_chart, even_steps, linear_axis
from ..rendering.html_page import Tag, Tone, aside, html_page, lead, page_table, prose, section, sentence, warned
from ..rendering.units import bytes_text, seconds_text
from .device_page import device_section
from .rescue import remembered_rescue
from .rescue_page import rescue_sections


def plan_page(plan: Plan, more: Iterable[str] = (), *, elsewhere: str | None = None) -> str:
    """Return the page of a plan.

    Args:
        plan: The plan.
        more: Sections that belong to it, as what its device was measured to do.
        elsewhere: The name of a device that is not here; None: it is the plan's own.
    """
    columns, rows = plan_rows(plan)
    verdict = [column.title for column in columns].index("verdict")
    tagged = [
        tuple(Tag(cell, _tone(cell)) if place == verdict else cell for place, cell in enumerate(row)) for row in rows
    ]
    columns_of_ways, ways = plan_ways(plan)
    basis = (
        ""
        if plan.measured
        else "Nobody measured this device here: planned from published facts, so that no times are known."
    )
    in_files = "" if plan.quantization else f" (saved in {plan.saved})"
    parts = [
        lead(f"Loaded in {plan.what} on {plan.where}."),
        prose(sentence(f"Because: {plan.reason}"), basis),
        warned(*plan.warnings),
        section("Candidates", _times(plan), _memory(plan), page_table(columns, tagged), aside(*plan_notes(plan))),
        section("What would fit", page_table(columns_of_ways, ways)) if ways else "",
        *more,
    ]
    device = [] if elsewhere is None else ["--device", shlex.quote(elsewhere)]
    made_by = " ".join(["safe-dtype plan", plan.source, *device, "--html", "FILE"])
    return html_page(f"Plan of {plan.source}{in_files}", parts, made_by=made_by)


def plan_page_with_device(plan: Plan, model: str, *, revision: str | None, elsewhere: str | None) -> str:
    """Return the page of a plan, with what is known of its device, and of the model's rescue where the plan has one.

    Args:
        plan: The plan.
        model: What it was made for: a folder or a repository.
        revision: Of the repository.
        elsewhere: The name of a device that is not here; None: it is the plan's own.
    """
    device = facts_of(plan.device) if elsewhere is None else prior_facts(elsewhere)
    sections = [device_section(device)]
    if plan.rescale and elsewhere is None:
        rescue = remembered_rescue(model, device=plan.device, revision=revision, max_drift=plan.policy.max_drift)
        sections += rescue_sections(rescue) if rescue else ()
    return plan_page(plan, sections, elsewhere=elsewhere)


def _tone(verdict: str) -> Tone:
    return "good" if verdict in ("chosen", "accepted") else "bad"


def _times(plan: Plan) -> str:
    timed = timed_first(plan)
    if len(timed) < 2:
        return ""
    largest = max(decision.cost.seconds or 0.0 for decision in timed) or 1.0
    rows = []
    for decision in timed:
        first, both = (
            100 * (part or 0.0) / largest for part in (decision.cost.prefill_seconds, decision.cost.seconds)
        )
        bars = (ChartBar(0, first, 0), *([ChartBar(first, both, 1)] if decision.cost.decode_seconds else []))
        rows.append(_chart_row(decision, plan, bars, seconds_text(decision.cost.seconds or 0.0)))
    workload = plan.policy.workload
    axis = linear_axis(
        largest,
        "Predicted time (seconds, linear scale)",
        ((value, seconds_text(value)) for value in even_steps(largest)),
    )
    has_tokens = any(decision.cost.decode_seconds for decision in timed)
    keys = (f"{workload.prompt_tokens} {rows_word(plan)} in", f"{workload.new_tokens} new tokens, one by one")
    return bar_chart(rows, keys[: 1 + has_tokens], axis)


def _memory(plan: Plan) -> str:
    rows, largest = [], max((decision.cost.bytes for decision in plan.decisions), default=0)
    if not largest:
        return ""
    for decision in best_first(plan, lambda cost: cost.bytes):
        start, bars = 0.0, []
        for key, part in enumerate((decision.cost.weight_bytes, decision.cost.cache_bytes, decision.cost.work_bytes)):
            end = start + 100 * part / largest
            bars.append(ChartBar(start, end, key))
            start = end
        rows.append(_chart_row(decision, plan, tuple(bars), bytes_text(decision.cost.bytes)))
    axis = linear_axis(
        largest, "Peak of memory on the device (bytes, linear scale)",
        ((value, bytes_text(value) if value else "0") for value in even_steps(largest)),
    )  # fmt: skip
    keys = ("weights", "KV cache (keys and values of all tokens)", "activations, or a weight on its way in")
    return bar_chart(rows, keys, axis)


def _chart_row(decision: Decision, plan: Plan, bars: tuple[ChartBar, ...], figure: str) -> ChartRow:
    state = fate(decision, plan)
    return ChartRow(
        str(decision.candidate), bars, f"{figure} {state}".rstrip(), decision.reason,
        is_chosen=state == "chosen", is_rejected=state == "rejected",
    )  # fmt: skip
