"""How much a weight may lose below float16's range by being moved: no more than bfloat16 would round it by."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from ..errors import RescaleError
from ..facts import Rescale
from ..models.recast import kept_in_float32
from .folding.fold import exponents_of_weights
from .folding.underflow import lost_in_half

# Of one weight, RMS: by as much bfloat16 rounds each number at most, and what loses more is no gain over it.
_MOST_LOST = 2.0**-8


def require_little_lost(name: str, lost: float) -> None:
    """Check what a weight loses: RMS of the loss over that of the weight.

    Raises:
        RescaleError: If that is too much.
    """
    if not lost <= _MOST_LOST:
        raise RescaleError(f"{name} would lose {lost:.2g} of its size (RMS) below float16's range")


def require_bits_kept(model: nn.Module, rescale: Rescale, islands: Collection[str]) -> None:
    """Check what the weights of `model`, which is not rescaled yet, will lose in float16 by `rescale`.

    Args:
        model: In bfloat16 or float32.
        rescale: With the model's own names.
        islands: Modules that go to float32.

    Raises:
        RescaleError: If one loses too much, or is not there.
    """
    is_kept = kept_in_float32(model, torch.float16)
    inside = tuple(f"{island}." for island in islands)
    for name, exponents in exponents_of_weights(rescale).items():
        if is_kept(name) or name.startswith(inside):
            continue
        try:
            weight = model.get_parameter(name)
        except AttributeError as exc:
            raise RescaleError(f"{type(model).__name__} has no {name}") from exc
        require_little_lost(name, lost_in_half(weight.detach(), exponents))
