"""Trained parameters in float32: what mixed precision computes its 16-bit products from."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import TrainingLoopError
from .mistakes.check_arguments import refuse_engines, require_models, require_optimizers

_HALVES = (torch.float16, torch.bfloat16)
_EXAMPLE = "float32_masters(model, optimizer)"


def float32_masters(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Make the parameters that are trained float32, in place, and return how many bytes they take more.

    Parameters that are frozen, as under LoRA, keep their dtype. Nothing is rounded: float32 holds every number of 16 bits.

    Args:
        model: The model, before it is wrapped for several ranks or prepared by accelerate.
        optimizer: Its optimizer, whose states become float32 as well; None where it is made later.

    Raises:
        TypeError: If either is something else.
        TrainingLoopError: If the model is an engine of DeepSpeed, or wrapped already: the buffers of the gradients are as narrow as they are.
    """
    refuse_engines([model, optimizer])
    require_models([model], _EXAMPLE)
    require_optimizers([] if optimizer is None else [optimizer], _EXAMPLE)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise TrainingLoopError("float32_masters comes too late, the model is wrapped in DistributedDataParallel")
    grown = 0
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in _HALVES:
            grown += parameter.numel() * 2
            parameter.grad = None  # another dtype than the parameter's is refused
            parameter.data = parameter.data.float()
    for state in optimizer.state.values() if optimizer is not None else ():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dtype in _HALVES:
                state[name] = value.float()
    return grown
