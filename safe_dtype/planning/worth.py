"""Which drift is worth measuring: one that stands between the plan and a much faster one."""

from __future__ import annotations

from .plan import Candidate, Ground, Plan

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
        (one.cost.seconds, one.candidate)
        for one in plan.decisions
        if one.ground is Ground.ROUNDING
        and one.cost.seconds is not None
        and one.cost.seconds * _WORTH <= plan.cost.seconds
    ]
    return min(faster, key=lambda pair: pair[0])[1] if faster else None
