"""Which measurement could lead to a much better plan."""

from __future__ import annotations

from ..facts import FLOAT16, CheckpointFacts
from .plan import Candidate, Cost, Ground, Plan

# A measurement loads the model a second time. It has to win at least this much.
_WORTH = 1.2


def worth_measuring(plan: Plan) -> Candidate | None:
    """Return the fastest candidate that only its unmeasured rounding keeps from being the plan; None where none is.

    Where the user orders a dtype, wants memory or fidelity, or is strict, nothing is measured.
    """
    if plan.ordered or plan.quantization or plan.device_map or plan.cost is None or plan.cost.seconds is None:
        return None
    if plan.policy.mode == "strict" or plan.policy.prefer != "speed" or plan.policy.ladder:
        return None
    faster = [
        (decision.cost.seconds, decision.candidate)
        for decision in plan.decisions
        if decision.ground is Ground.ROUNDING
        and decision.cost.seconds is not None
        and decision.cost.seconds * _WORTH <= plan.cost.seconds
    ]
    return min(faster, key=lambda pair: pair[0])[1] if faster else None


def range_worth_measuring(plan: Plan, checkpoint: CheckpointFacts) -> bool:
    """Whether float16 would be the plan, or is one by order, and nobody has looked whether the activations fit it."""
    if checkpoint.half is not None or plan.policy.mode == "strict" or plan.quantization:
        return False
    if plan.device_map:
        return False  # it does not fit on the device whole, and would have to, to be measured
    unknown = [one for one in plan.decisions if one.candidate.storage == FLOAT16 and one.ground is Ground.RANGE]
    if not unknown:
        return False
    if plan.ordered or plan.policy.ladder:
        before = plan.policy.ladder[: plan.policy.ladder.index(plan.storage)] if plan.policy.ladder else ()
        return FLOAT16 in (plan.ordered, *before)
    return plan.cost is not None and any(_is_much_better(one.cost, plan.cost, plan) for one in unknown)


def _is_much_better(other: Cost, now: Cost, plan: Plan) -> bool:
    if plan.policy.prefer == "memory":
        return other.bytes * _WORTH <= now.bytes
    if plan.policy.prefer != "speed" or other.seconds is None or now.seconds is None:
        return False
    return other.seconds * _WORTH <= now.seconds
