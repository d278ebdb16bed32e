"""Which measurement could lead to a much better plan."""

from __future__ import annotations

from ..facts import CODES, FLOAT16, FLOAT32, CheckpointFacts, VerdictKind
from .plan import Candidate, Decision, Ground, Plan

# A measurement loads the model a second time. It has to win at least this much.
_WORTH = 1.2
_READ_ONCE = ("gguf", "state_dict")  # cannot be loaded a second time, to be measured


def worth_measuring(plan: Plan) -> Candidate | None:
    """Return the fastest candidate that only its unmeasured rounding keeps from being the plan; None where none is.

    Where the user orders a dtype, wants memory or fidelity, or is strict, nothing is measured but codes, where these are
    asked for or are what would fit.
    """
    if codes := _codes_worth_measuring(plan):
        return codes
    if plan.ordered or plan.quantization or plan.device_map or plan.chosen is None:
        return None
    if plan.policy.mode == "strict" or plan.policy.prefer != "speed" or plan.policy.ladder:
        return None
    faster = [
        decision
        for decision in plan.decisions
        if decision.ground is Ground.ROUNDING and _is_much_faster(decision, plan.chosen, plan)
    ]
    return min(faster, key=lambda one: one.cost.seconds or 0.0).candidate if faster else None


def _codes_worth_measuring(plan: Plan) -> Candidate | None:
    """Return the fastest candidate by codes that was not measured; None where none would be the plan."""
    coded = [one for one in plan.decisions if one.candidate.codes in CODES and one.ground is Ground.ROUNDING]
    if not coded or plan.quantization or plan.chosen is None:
        return None
    best = min(coded, key=lambda one: one.cost.seconds or 0.0)
    is_wanted = plan.policy.codes or plan.chosen.ground is Ground.MEMORY
    is_smaller = plan.policy.prefer == "memory" and best.cost.bytes * _WORTH <= plan.chosen.cost.bytes
    return best.candidate if (is_wanted or is_smaller) and plan.chosen.candidate.codes not in CODES else None


def faster_if_asked(plan: Plan) -> Decision | None:
    """Return the verdict on float16 where it would be much faster than what is chosen, and nobody asked to round to it."""
    if plan.ordered or plan.quantization or plan.chosen is None or plan.policy.ladder:
        return None
    if plan.policy.mode == "strict" or plan.policy.prefer != "speed":
        return None
    rounded = [one for one in plan.decisions if one.candidate.storage == FLOAT16 and one.ground is Ground.RANGE]
    faster = (decision for decision in rounded if _is_much_faster(decision, plan.chosen, plan))
    return next(faster, None)


def range_worth_measuring(plan: Plan, checkpoint: CheckpointFacts) -> bool:
    """Whether float16 would be the plan, or is one by order, and nobody has looked whether the activations fit it."""
    if checkpoint.half is not None or plan.policy.mode == "strict" or plan.quantization:
        return False
    unknown = [one for one in plan.decisions if one.candidate.storage == FLOAT16 and one.ground is Ground.RANGE]
    if not unknown:
        return False
    if plan.ordered or plan.policy.ladder:
        # A model that does not fit is not brought into another dtype than the one that was asked for.
        ladder = plan.policy.ladder
        # An order need not be on the ladder, which then is only where to go on. What may overflow stands in for a plan where
        # there is nothing else on the ladder.
        stands_in = plan.chosen is not None and plan.chosen.ground is Ground.RANGE
        before = ladder[: ladder.index(plan.storage) + stands_in] if plan.storage in ladder else ()
        return not plan.device_map and FLOAT16 in (plan.ordered, *before)
    return plan.chosen is not None and any(_is_much_better(one, plan.chosen, plan) for one in unknown)


def first_measurement(plan: Plan, checkpoint: CheckpointFacts) -> tuple[Candidate, ...]:
    """Return the candidates that the first measurement of a load decides on: float16's range, then one rounding."""
    if checkpoint.adapter or checkpoint.file_format in _READ_ONCE:
        return ()
    if range_worth_measuring(plan, checkpoint):
        return tuple(one.candidate for one in plan.decisions if one.candidate.storage == FLOAT16)
    candidate = worth_measuring(plan)
    return () if candidate is None else (candidate,)


def _is_much_better(other: Decision, chosen: Decision, plan: Plan) -> bool:
    # Where nothing fits whole, half the bytes are worth more than any arithmetic.
    if plan.policy.prefer == "memory" or (plan.device_map and plan.policy.prefer == "speed"):
        return other.cost.bytes * _WORTH <= chosen.cost.bytes or _is_much_faster(other, chosen, plan)
    return plan.policy.prefer == "speed" and _is_much_faster(other, chosen, plan)


def _is_much_faster(other: Decision, chosen: Decision, plan: Plan) -> bool:
    if other.cost.seconds is not None and chosen.cost.seconds is not None:
        return other.cost.seconds * _WORTH <= chosen.cost.seconds
    # Nobody measured: native 16 bit against float32, or against 16 bit that is emulated.
    if plan.measured or other.kind is not VerdictKind.NATIVE:
        return False
    return chosen.kind is not VerdictKind.NATIVE or chosen.candidate.storage == FLOAT32
