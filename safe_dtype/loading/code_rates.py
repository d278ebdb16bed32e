"""What products by codes reach on this CPU, measured where a plan may take them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from ..devices import facts_of
from ..facts import CODES, COMPUTE, CheckpointFacts, DeviceFacts, Dtype, VerdictKind
from ..planning import Ground, Plan
from ..planning.candidate_routes import can_be_laid_out
from ..planning.fewer_bits import codes_wanted, would_hold
from ..planning.matmul_routes import code_ops
from .request import Request

_LEAST_SAVED = 2**24  # parameters, below which nobody who wants little memory gains by another byte for each


def may_round_to(codes: Dtype, plan: Plan, request: Request, checkpoint: CheckpointFacts) -> bool:
    """Whether products by codes are worth measuring: weights may be rounded to them, and that is wanted.

    Where they would only save memory, models of which nobody notices it are left out. Fewer bits are wanted where more do
    not have room, so `plan` was made with those.
    """
    saved, chosen = checkpoint.saved, plan.chosen
    if request.devices != ("cpu",) or not sys.platform.startswith("linux") or plan.quantization:
        return False
    if saved not in COMPUTE or not can_be_laid_out(saved, checkpoint, plan.policy):
        return False
    fits = chosen is None or chosen.ground is not Ground.MEMORY
    is_noticed = plan.policy.codes or not fits or checkpoint.parameters >= _LEAST_SAVED
    if not is_noticed or codes not in codes_wanted(plan.policy, plan.ordered, fits=fits):
        return False
    return not would_hold(one for one in plan.decisions if one.candidate.codes in CODES)


def with_code_rates(
    codes: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts, widths: Sequence[tuple[int, int]]
) -> DeviceFacts:
    """Return `device`, the CPU, with verdicts on products by `codes` at `widths`, measured now or remembered.

    Also by those of 8 bits, where some weights stay in these.
    """
    saved = checkpoint.saved
    codings = (linear.coding(codes) for linear in checkpoint.linears)
    for kind in dict.fromkeys((codes, *(coding.codes for coding in codings if coding is not None))):
        routes = [(saved, op) for op in code_ops(saved, kind)]
        if any(device.verdict(*route).kind is VerdictKind.UNKNOWN for route in routes):
            rates = facts_of("cpu", dtypes=(saved,), widths=widths, ops=(), routes=routes)
            device = replace(device, verdicts=(*device.verdicts, *rates.verdicts))
    return device
