"""The first step of a run is looked at before it is made, in the dtype that was ordered: what does not fit is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from ...errors import TrainingDoesNotFitError
from ...errors.warn import warn
from ...facts import Dtype
from ...ranks import is_first_rank
from ...rendering.units import bytes_text
from .fit_step_down import is_small, plan_of_call
from .memory_plan import MemoryPlan
from .model_call import ModelCall


def look_at_first_step(
    call: ModelCall,
    dtype: Dtype,
    others: Sequence[Dtype],
    optimizers: Sequence[Optimizer],
    *,
    max_memory: Mapping[Any, Any],
    accumulation: int,
) -> None:
    """Warn of a step that is about to be made as it was ordered and does not fit, with what would. Nothing is changed.

    Args:
        call: With what the step begins.
        dtype: That was ordered.
        others: What could be ordered in its place.
        optimizers: Of the loop.
        max_memory: Bytes by device, as accelerate takes them; empty: what is free.
        accumulation: Micro-batches in one step.

    Raises:
        TrainingDoesNotFitError: If the system would end the process for it: the tensors of the step alone are more than all
            memory that is left. Not where `max_memory` says what may be held, nor for a compiled model.
    """
    if not max_memory and is_small(call):
        return
    plan = plan_of_call(call, dtype, optimizers, max_memory, accumulation)
    if plan is None or plan.is_as_ordered:
        return
    plans = [plan_of_call(call, other, optimizers, max_memory, accumulation) for other in others]
    fitting = [other for other in plans if other is not None and other.is_as_ordered]
    if plan.cannot_be and not call.is_compiled:
        needed, kinds = plan.tried[0][1], plan.kinds[0]
        raise TrainingDoesNotFitError(
            dtype.name, needed, plan.free_bytes, kinds=kinds, instead=_instead(plan, fitting)
        )
    if is_first_rank():
        names = " and ".join(str(other.dtype) for other in plans if other is not None)
        more = "".join(f"; in {other.dtype} it needs {bytes_text(other.tried[0][1])}, and fits" for other in fitting)
        more = more or (f"; in {names} it does not fit either" if names else "")
        warn(f"{plan}{more}. Nothing was changed. Next: order what fits, or train on a device with more memory")


def _instead(plan: MemoryPlan, fitting: Sequence[MemoryPlan]) -> tuple[str, ...]:
    """Return what can be ordered in the place of what does not fit."""
    ways = [f"order {plan.way}, which needs {bytes_text(plan.tried[-1][1])}"] if plan.way is not None else []
    others = [f"train in {other.dtype}, where it needs {bytes_text(other.tried[0][1])}" for other in fitting]
    return (*ways, *others)
