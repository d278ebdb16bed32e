"""The picture of a plan: predicted seconds of every candidate, prompt and new tokens in one bar."""

from __future__ import annotations

from ..rendering.svg import BLUE, BROWN, INK, LINE, bar, document, group, legend, text
from ..rendering.units import bytes_text, seconds_text
from .plan import Decision, Plan, best_first, fate

_LEFT, _WIDTH, _TOP, _ROW, _ROOM = 170, 380, 44, 22, 150  # in the picture's units; right of the bars the figures


def time_bars(plan: Plan) -> str:
    """Return the picture as SVG; nothing where the seconds of no two candidates are known."""
    timed = timed_first(plan)
    if len(timed) < 2:
        return ""
    unit = _WIDTH / max(one.cost.seconds or 0.0 for one in timed)
    elements = []
    for number, decision in enumerate(timed):
        top, cost = _TOP + number * _ROW, decision.cost
        first = (cost.prefill_seconds or 0.0) * unit
        last = first + (cost.decode_seconds or 0.0) * unit
        state = fate(decision, plan)
        faint = 0.35 if state == "rejected" else 1
        seconds = seconds_text(cost.seconds or 0.0)
        parts = [
            text(_LEFT - 8, top + 13, str(decision.candidate), anchor="end", bold=state == "chosen"),
            bar(_LEFT, _LEFT + first, top + 3, 13, BLUE, opacity=faint),
            *([bar(_LEFT + first, _LEFT + last, top + 3, 13, BROWN, opacity=faint)] if cost.decode_seconds else []),
            text(_LEFT + last + 8, top + 13, f"{seconds}, {bytes_text(cost.bytes)} {state}".rstrip(), colour=INK),
        ]
        elements.append(group("row", f"{decision.candidate}: {decision.reason}", parts))
    workload = plan.policy.workload
    keys = ((_LEFT, f"{workload.prompt_tokens} in", BLUE), (_LEFT + 60, f"{workload.new_tokens} out", BROWN))
    shown = keys if any(one.cost.decode_seconds for one in timed) else keys[:1]
    elements += legend(36, shown)
    elements.append(text(_LEFT + 130, 36, "predicted seconds, then the peak of memory", colour=LINE))
    height = _TOP + len(timed) * _ROW + 8
    return document(_LEFT + _WIDTH + _ROOM, height, elements, title=f"{plan.source} on {plan.where}")


def timed_first(plan: Plan) -> list[Decision]:
    """Return the decisions whose seconds are known, in the order of `best_first` by them."""
    return [one for one in best_first(plan, lambda cost: cost.seconds or 0.0) if one.cost.seconds is not None]
