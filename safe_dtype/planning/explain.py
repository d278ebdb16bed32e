"""A plan for people: what is loaded and why, then every candidate with the reason for its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..rendering.notebook import html_table, notebook, paragraph, picture
from ..rendering.shared_reasons import shared_parts, without_parts
from ..rendering.tables import Column, page, table
from ..rendering.units import bytes_text, seconds_text
from .plan import Decision, Ground, Plan, best_first
from .time_bars import time_bars

_OF_WAYS = (
    *(Column(title, number=True) for title in ("weights", "KV cache", "total")),
    Column("fits"),
    Column("", wraps=True),
)
_ROWS = {  # what a row of its products is, where a model takes no tokens
    "images": ("patches", " of images"),
    "audio": ("frames", " of audio (about 50 a second in most models)"),
    "inputs": ("rows", " of its inputs (tokens, patches of images or frames of audio)"),
}
_REASONS_BESIDE = 100  # columns; on a narrower page the reasons stand below the table


@dataclass(frozen=True, slots=True)
class _Row:
    """One candidate, as text."""

    cells: tuple[str, ...]
    name: str
    reason: str


def plan_text(plan: Plan, *, width: int) -> str:
    """Return the plan: what is loaded and why in a few lines, then one row a candidate, then what holds for several."""
    columns, rows = _columns(plan), _rows(plan)
    if width >= _REASONS_BESIDE:
        shown = table((*columns, Column("reason", wraps=True)), ((*row.cells, row.reason) for row in rows))
        reasons = []
    else:
        shown = table(columns, (row.cells for row in rows))
        reasons = [f"{row.name}: {row.reason}" for row in rows if row.reason]
    gap = [""] if reasons else []
    ways = [table(*plan_ways(plan))] if plan.ways else []
    return page([*_headline(plan), shown, *reasons, *gap, *plan_notes(plan), *_warnings(plan), *ways], width=width)


def plan_html(plan: Plan) -> str:
    """Return the same as `plan_text`, as HTML for a notebook."""
    bars = time_bars(plan)
    return notebook(
        paragraph(_headline(plan)),
        picture(bars) if bars else "",
        html_table(*plan_rows(plan)),
        paragraph([*plan_notes(plan), *_warnings(plan)]),
        html_table(*plan_ways(plan)),
    )


def plan_rows(plan: Plan) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
    """Return the columns and rows of the candidates, each with its reason: what is chosen comes first."""
    return (*_columns(plan), Column("reason", wraps=True)), [(*row.cells, row.reason) for row in _rows(plan)]


def plan_ways(plan: Plan) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
    """Return the columns and rows of what would fit."""
    return _way_columns(plan), _ways(plan)


def rows_word(plan: Plan) -> str:
    """Return what the rows of a model's products are: "tokens", "patches", "frames" or "rows"."""
    return _ROWS.get(plan.takes, ("tokens", ""))[0]


def _way_columns(plan: Plan) -> tuple[Column, ...]:
    is_refused = any(decision.ground is Ground.UNSUPPORTED for decision in plan.decisions if plan.quantization)
    return Column("in its place" if is_refused else "to make it fit", wraps=True), *_OF_WAYS


def _ways(plan: Plan) -> list[tuple[str, ...]]:
    return [
        (
            way.name, bytes_text(way.weight_bytes), bytes_text(way.cache_bytes), bytes_text(way.total_bytes),
            "yes" if way.fits else "no", way.note,
        )
        for way in plan.ways
    ]  # fmt: skip


def _headline(plan: Plan) -> tuple[str, ...]:
    basis = (
        ()
        if plan.measured
        else ("Nobody measured this device here: planned from published facts, so that no times are known.",)
    )
    if plan.quantization:
        return f"{plan.source} on {plan.where}: {plan.reason}.", *basis
    saved = f"{plan.source} (saved in {plan.saved}) on {plan.where}"
    return f"{saved}: {plan.what}", f"because: {plan.reason}.", *basis


def _columns(plan: Plan) -> tuple[Column, ...]:
    workload = plan.policy.workload
    titles = (f"{workload.prompt_tokens} {_ROWS.get(plan.takes, ('in', ''))[0]}", f"{workload.new_tokens} out")
    shown = [title for title, is_shown in zip(titles, _has_times(plan), strict=True) if is_shown]
    computed = [Column("computed")] if _has_pairs(plan) else []
    numbers = [Column(title, number=True) for title in (*shown, "memory")]
    return Column("stored" if computed else "dtype"), *computed, *numbers, Column("verdict", wraps=True)


def _rows(plan: Plan) -> list[_Row]:
    shared = _shared(plan.decisions)
    return [_row(decision, plan, shared) for decision in best_first(plan)]


def _row(decision: Decision, plan: Plan, shared: Sequence[str]) -> _Row:
    storage, compute, cost = decision.candidate.storage, decision.candidate.compute, decision.cost
    times = [
        "?" if seconds is None else seconds_text(seconds)
        for seconds, is_shown in zip((cost.prefill_seconds, cost.decode_seconds), _has_times(plan), strict=True)
        if is_shown
    ]
    dtypes = [decision.candidate.stored, *["" if storage == compute else compute.name] * _has_pairs(plan)]
    cells = (*dtypes, *times, bytes_text(cost.bytes), _verdict(decision, plan))
    own = without_parts(decision.reason, shared) if decision.accepted else decision.reason
    return _Row(cells, str(decision.candidate), own)


def _verdict(decision: Decision, plan: Plan) -> str:
    is_chosen = decision is plan.chosen
    if is_chosen and (decision.accepted or not plan.quantization):
        return "chosen" if decision.accepted else f"chosen despite {decision.ground}"
    return "accepted" if decision.accepted else f"rejected: {decision.ground}"


def plan_notes(plan: Plan) -> Iterator[str]:
    """Yield what stands below the table: what holds for several rows, what the columns say, what is rounded."""
    if shared := _shared(plan.decisions):
        yield f"Every accepted dtype: {'; '.join(shared)}."
    if _has_pairs(plan):
        yield "Where the column 'computed' is empty, products are computed in the dtype that the rest is stored in."
    if _has_times(plan)[0]:
        prompt, new = plan.policy.workload.prompt_tokens, plan.policy.workload.new_tokens
        answer = f", then for {new} new ones" if _has_times(plan)[1] else ""
        tokens = f"a prompt of {prompt} tokens{answer}" if plan.cost and plan.cost.cache_bytes else f"{prompt} tokens"
        rows, of_what = _ROWS.get(plan.takes, ("", ""))
        what = f"{prompt} {rows}{of_what}" if rows else tokens
        yield f"Times are predicted for {what}; memory is the peak on the device."
    if plan.rounded:
        yield f"Rounded to {plan.storage} on loading: {plan.rounded}: {plan.rounded.names}"


def _warnings(plan: Plan) -> list[str]:
    return [f"warning: {warning}" for warning in plan.warnings]


def _shared(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """Return the parts of reasons that all accepted candidates share; none where there is only one."""
    return shared_parts(decision.reason for decision in decisions if decision.accepted)


def _has_times(plan: Plan) -> tuple[bool, bool]:
    """Whether there are seconds to show: of the prompt, and of new tokens."""
    costs = [decision.cost for decision in plan.decisions]
    return any(cost.prefill_seconds is not None for cost in costs), any(cost.decode_seconds for cost in costs)


def _has_pairs(plan: Plan) -> bool:
    return any(decision.candidate.storage != decision.candidate.compute for decision in plan.decisions)
