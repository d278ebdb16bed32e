"""What products by 8-bit codes reach on this CPU, measured where a plan may take them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from ..devices import facts_of
from ..facts import COMPUTE, CheckpointFacts, DeviceFacts
from ..planning import Ground, Plan
from ..planning.candidate_routes import can_be_laid_out
from ..planning.fewer_bits import are_codes_wanted
from ..planning.matmul_routes import int8_ops
from .request import Request

_LEAST_SAVED = 2**24  # parameters, below which nobody who wants little memory gains by another byte for each


def may_round_to_codes(plan: Plan, request: Request, checkpoint: CheckpointFacts) -> bool:
    """Whether products by 8-bit codes are worth measuring: weights may be rounded to them, and that is wanted.

    Where they would only save memory, models of which nobody notices it are left out.
    """
    saved, chosen = checkpoint.saved, plan.chosen
    if request.devices != ("cpu",) or not sys.platform.startswith("linux") or plan.quantization:
        return False
    if saved not in COMPUTE or not can_be_laid_out(saved, checkpoint, plan.policy):
        return False
    fits = chosen is None or chosen.ground is not Ground.MEMORY
    is_noticed = plan.policy.int8 or not fits or checkpoint.parameters >= _LEAST_SAVED
    return is_noticed and are_codes_wanted(plan.policy, plan.ordered, fits=fits)


def with_int8_rates(
    device: DeviceFacts, checkpoint: CheckpointFacts, widths: Sequence[tuple[int, int]]
) -> DeviceFacts:
    """Return `device`, the CPU, with verdicts on products by 8-bit codes at `widths`, measured now or remembered."""
    saved = checkpoint.saved
    rates = facts_of("cpu", dtypes=(saved,), widths=widths, ops=(), routes=[(saved, op) for op in int8_ops(saved)])
    return replace(device, verdicts=(*device.verdicts, *rates.verdicts))
