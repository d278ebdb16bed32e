"""A step down in flight is looked at before the first pass in the wider dtype: on all ranks together, with one outcome."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim import Optimizer

from ...devices.memory import memory_of, peak_held
from ...errors import TrainingDoesNotFitError
from ...errors.warn import warn
from ...facts import Dtype
from ...processes.handler_exceptions import is_of_a_signal
from ...ranks import World, gather_texts, is_first_rank
from .batch_rows import tensors_in, why_whole
from .fit_training import nothing_drawn, plan_step_down
from .memory_plan import USABLE, MemoryPlan
from .model_call import ModelCall
from .traced_step import Checkpointing

logger = logging.getLogger(__name__)

NOT_OURS = "its micro-batches are those of the loop"


@dataclass(frozen=True, slots=True)
class Fit:
    """What makes a step fit on one rank, from none of it to all: the largest of all ranks binds each.

    `parts` of a micro-batch run one after the other. `needed` and `free` are bytes, of a rank on which nothing fits; there
    `rows` and `accumulation` are micro-batches that would, where only the program can make them so.
    """

    parts: int = 1
    every: int = 0  # of the layers that are checkpointed; 0: none is
    offload: bool = False
    needed: int = 0
    free: int = 0
    rows: int = 0
    accumulation: int = 0
    text: str = ""
    kinds: tuple[tuple[str, int], ...] = ()  # what `needed` is made of, where nothing fits
    whole: str = ""  # why a micro-batch cannot be run in parts, where that would fit, or might

    @classmethod
    def from_text(cls, text: str) -> Fit:
        """Read what `to_text` of another rank has written."""
        fit = cls(*json.loads(text))
        return replace(fit, kinds=tuple((kind, size) for kind, size in fit.kinds))

    def to_text(self) -> str:
        """Return it as a message to other ranks."""
        return json.dumps([getattr(self, name) for name in self.__slots__])

    @property
    def order(self) -> tuple[int, int, bool, float]:
        """By this the larger of two is found."""
        return self.needed, self.parts, self.offload, 1 / self.every if self.every else 0.0


def fit_step_down(  # noqa: PLR0913  (all but three by name)
    call: ModelCall | None,
    dtype: Dtype,
    optimizers: Sequence[Optimizer],
    *,
    world: World | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    why_not_split: Callable[[], str] = lambda: NOT_OURS,
    has_stepped: bool = False,
    accumulation: int = 1,
) -> int:
    """Make a step in `dtype` fit, and return in how many parts each micro-batch is to run. Every rank has to call it.

    Layers are checkpointed in place. What is changed is warned of. Where nobody can tell, nothing is.

    Args:
        call: What the failed attempt has called last; None: nothing.
        dtype: To go on in.
        optimizers: Of the loop, with the states that they have.
        world: The ranks.
        max_memory: Bytes by device, as accelerate takes them.
        why_not_split: Returns why the caller cannot run a micro-batch in parts; nothing where it can.
        has_stepped: Whether this process has made whole steps in 16 bits: at most it takes as much again.
        accumulation: Micro-batches in one step.

    Raises:
        TrainingDoesNotFitError: If nothing makes it fit, on any rank.
    """
    own = Fit()
    if call is not None and not (has_stepped and _has_room_twice(call, max_memory)):
        plan = plan_of_call(call, dtype, optimizers, max_memory, accumulation)
        own = _fit_by(plan, call.inputs, why_not_split)
    fit = own
    if world is not None:
        texts = gather_texts(world, own.to_text())
        fit = max((Fit.from_text(text) for text in texts), key=lambda other: other.order)
    if fit.needed:
        ranks = world.size if world is not None else 1
        devices = max(1, torch.accelerator.device_count())
        raise TrainingDoesNotFitError(
            dtype.name,
            fit.needed,
            fit.free,
            ranks,
            devices,
            fit.rows,
            fit.accumulation,
            kinds=fit.kinds,
            whole=fit.whole,
        )
    if fit.every and call is not None:
        Checkpointing(fit.every, fit.offload).enable(call.unwrapped)
    if fit.text and is_first_rank():
        warn(f"{fit.text}. Going on so. Next: ask for it yourself, or for a device with more memory")
    return fit.parts


def has_room(
    call: ModelCall | None,
    dtype: Dtype,
    optimizers: Sequence[Optimizer],
    max_memory: Mapping[Any, Any] | None,
    *,
    has_stepped: bool,
) -> bool:
    """Whether a step in `dtype` fits as it is, in place of one in 16 bits; True where nobody can tell."""
    if call is None or (has_stepped and _has_room_twice(call, max_memory)) or (not max_memory and is_small(call)):
        return True
    plan = plan_of_call(call, dtype, optimizers, max_memory)
    return plan is None or plan.is_as_ordered


def plan_of_call(
    call: ModelCall,
    dtype: Dtype,
    optimizers: Sequence[Optimizer],
    max_memory: Mapping[Any, Any] | None = None,
    accumulation: int = 1,
) -> MemoryPlan | None:
    """Return whether a step with the inputs of `call` fits; None where nobody can tell, and the log says why."""
    model, inputs = call.unwrapped, call.inputs
    own = set(model.parameters())
    optimizer = next((o for o in optimizers if any(p in own for g in o.param_groups for p in g["params"])), None)
    if optimizer is None:
        return None
    try:
        with nothing_drawn():
            return plan_step_down(model, inputs, dtype, optimizer, accumulation=accumulation, max_memory=max_memory)
    except Exception as exc:
        # A model is run without its values: whatever that raises says nothing of the step itself.
        if is_of_a_signal(exc):
            raise
        logger.info("whether a step in %s fits is not known: %s: %s", dtype, type(exc).__name__, exc)
        return None


def is_small(call: ModelCall) -> bool:
    """Whether a step fits for sure: were every number of the inputs to meet every weight, half of what is free is enough."""
    weights = list(call.unwrapped.parameters())
    numbers, met = sum(weight.numel() for weight in weights), sum(tensor.numel() for tensor in tensors_in(call.inputs))
    device = str(weights[0].device) if weights else "cpu"
    return 16 * numbers * (met + 1) <= memory_of(device).free_bytes // 2


def _fit_by(plan: MemoryPlan | None, batch: Mapping[Any, Any], why_not_split: Callable[[], str]) -> Fit:
    if plan is None or plan.is_as_ordered:
        return Fit()
    ordered, way = plan.tried[0][0], plan.way
    if way is None:
        needed = min(needed for _, needed in plan.tried)
        whole = why_whole(batch) if ordered.rows > 1 else ""
        return Fit(needed=needed, free=plan.free_bytes, kinds=plan.kinds_of_least(), whole=whole)
    parts = ordered.rows // way.rows
    if parts > 1 and (whole := why_not_split()):
        least = min(needed for tried, needed in plan.tried if tried.rows == ordered.rows)
        kinds = plan.kinds_of_least(ordered.rows)
        return Fit(needed=least, free=plan.free_bytes, rows=way.rows, accumulation=parts, kinds=kinds, whole=whole)
    checkpointing = way.checkpointing
    fit = Fit(parts=parts, text=str(plan))
    return fit if checkpointing is None else replace(fit, every=checkpointing.every, offload=checkpointing.offload)


def _has_room_twice(call: ModelCall, max_memory: Mapping[Any, Any] | None) -> bool:
    """Whether as much is free as this process has ever held on the device."""
    device = next((str(weight.device) for weight in call.unwrapped.parameters()), "cpu")
    peak = peak_held(device)
    return peak is not None and not max_memory and memory_of(device).free_bytes * USABLE >= peak
