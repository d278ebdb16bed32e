"""From which dtype training goes on in which: only down, and not into what the parameters forbid."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ..errors import HalfParametersError
from ..facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from ..ranks import World, failed_dtypes, first_allowed, is_first_rank
from .loop import Loop
from .mistakes.check_arguments import require_ladder

logger = logging.getLogger(__name__)

LADDER = (BFLOAT16, FLOAT16, FLOAT32)


def rungs(first: Dtype, ladder: Sequence[Dtype] = LADDER) -> tuple[Dtype, ...]:
    """Return the dtypes to train in, from `first` down.

    Raises:
        TypeError: If something in it is no dtype.
        ValueError: If `first` is not in the ladder, or something in it is nothing to train in.
    """
    require_ladder(ladder)
    if unknown := [dtype.name for dtype in ladder if dtype not in LADDER]:
        raise ValueError(f"Nothing is trained in {unknown[0]}. Next: take bfloat16, float16 and float32.")
    if first not in ladder:
        names = ", ".join(map(str, ladder))
        raise ValueError(
            f"Training begins in {first}, which is not in the ladder ({names}). Next: put it there, or begin in one of these."
        )
    return tuple(ladder[list(ladder).index(first) :])


def leave_failed_dtypes(loop: Loop, world: World | None, ladder: Sequence[Dtype]) -> None:
    """Have `loop` begin below the dtypes in which a rank has failed for good before, and this job or another ended for it.

    Every rank has to call it.
    """
    weight = next((weight for model in loop.models for weight in model.parameters()), None)
    if weight is None:
        return
    failed = failed_dtypes(world, str(weight.device), loop.models[0])
    first = first_allowed(rungs(loop.dtype, ladder), failed)
    if first != loop.dtype and first in ladder:
        if is_first_rank():
            logger.warning("beginning in %s, for in %s %s", first, loop.dtype, failed[loop.dtype.name])
        loop.switch(first)


def refuse_half_parameters(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse parameters under an optimizer that are 16 bits wide: no other precision helps them.

    Raises:
        HalfParametersError: If there is one.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                    raise HalfParametersError(str(parameter.dtype).removeprefix("torch."))
