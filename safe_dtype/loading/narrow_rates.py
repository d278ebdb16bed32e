"""What products of float32 numbers by weights in 16 bit reach on this CPU, measured where a plan may hold weights so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from ..devices import facts_of
from ..facts import BFLOAT16, FLOAT16, FLOAT32, CheckpointFacts, DeviceFacts
from ..planning import Plan
from ..planning.candidate_routes import can_be_laid_out
from ..planning.matmul_routes import narrow_op
from .request import Request

_LEAST_NOTICED = 2**24  # parameters, below which a step takes about a millisecond whatever is done


def may_be_narrow(plan: Plan, request: Request, checkpoint: CheckpointFacts) -> bool:
    """Whether products by weights in 16 bit are worth measuring: those of a float32 checkpoint are views of its files.

    That is so where every weight is a 16-bit number. Where weights would have to be rounded, nothing is measured unless
    they may be: no dtype is ordered, and speed or memory is wanted.
    """
    if request.devices != ("cpu",) or not sys.platform.startswith("linux") or plan.quantization:
        return False
    if checkpoint.saved != FLOAT32 or checkpoint.parameters < _LEAST_NOTICED:
        return False
    may_be_rounded = plan.ordered is None and plan.policy.prefer != "fidelity" and not plan.policy.ladder
    return can_be_laid_out(FLOAT32, checkpoint, plan.policy) and (checkpoint.narrower is not None or may_be_rounded)


def with_narrow_rates(
    device: DeviceFacts, checkpoint: CheckpointFacts, widths: Sequence[tuple[int, int]]
) -> DeviceFacts:
    """Return `device`, the CPU, with verdicts on these products at `widths`, measured now or remembered."""
    dtypes = (checkpoint.narrower,) if checkpoint.narrower else (FLOAT16, BFLOAT16)
    routes = [(FLOAT32, narrow_op(dtype)) for dtype in dtypes]
    rates = facts_of("cpu", dtypes=(FLOAT32,), widths=widths, ops=(), routes=routes)
    return replace(device, verdicts=(*device.verdicts, *rates.verdicts))
