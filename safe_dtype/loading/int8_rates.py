"""What products by 8-bit codes reach on this CPU, measured where a plan may take them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from ..devices import facts_of
from ..facts import COMPUTE, CheckpointFacts, DeviceFacts
from ..planning import Ground, Plan
from ..planning.matmul_routes import int8_ops
from .request import Request

_LEAST_SAVED = 2**24  # parameters, below which nobody who wants little memory gains by another byte for each


def may_round_to_codes(plan: Plan, request: Request, checkpoint: CheckpointFacts) -> bool:
    """Whether linear weights in 8 bits are worth a look: asked for, wanted for their memory, or all that would fit."""
    if request.devices != ("cpu",) or not sys.platform.startswith("linux") or plan.quantization:
        return False
    if checkpoint.file_format != "safetensors" or checkpoint.saved not in COMPUTE or plan.policy.mode == "strict":
        return False
    if plan.policy.int8 or plan.ordered is not None:
        return plan.policy.int8
    wants_memory = plan.policy.prefer == "memory" and checkpoint.parameters >= _LEAST_SAVED
    return wants_memory or (plan.chosen is not None and plan.chosen.ground is Ground.MEMORY)


def with_int8_rates(
    device: DeviceFacts, checkpoint: CheckpointFacts, widths: Sequence[tuple[int, int]]
) -> DeviceFacts:
    """Return `device`, the CPU, with verdicts on products by 8-bit codes at `widths`, measured now or remembered."""
    saved = checkpoint.saved
    rates = facts_of("cpu", dtypes=(saved,), widths=widths, ops=(), routes=[(saved, op) for op in int8_ops(saved)])
    return replace(device, verdicts=(*device.verdicts, *rates.verdicts))
