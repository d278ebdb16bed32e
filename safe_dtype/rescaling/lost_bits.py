"""How much a weight may lose below float16's range by being moved: no more than bfloat16 would round it by.

One rule for every rescale: what is fitted here, what somebody shares, what is raised while a model runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..errors import RescaleError
from ..facts import Rescale
from ..models.original_weights import Exponents
from ..models.recast import kept_in_float32
from .folding.fold import Fold, exponents_of_weights
from .folding.underflow import lost_in_half

# Of one weight, RMS: by as much bfloat16 rounds each number at most, and what loses more is no gain over it.
_MOST_LOST = 2.0**-8


def require_little_lost(name: str, lost: float) -> None:
    """Check what a weight loses: RMS of the loss over that of the weight.

    A bias may lose anything below the range: it is added to a sum that float16 holds in the same steps, so that all of it
    that is lost is less than the sum is rounded by.

    Raises:
        RescaleError: If that is too much.
    """
    if lost <= _MOST_LOST or (name.endswith("bias") and lost < math.inf):
        return
    if lost == math.inf:
        raise RescaleError(f"{name} would go beyond float16's end")
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
        _require_kept(name, weight.detach(), {}, exponents)


def require_folded_bits_kept(fold: Fold) -> None:
    """Check the same of what is folded into a model in bfloat16 or float32, where a moved weight has lost nothing yet.

    Raises:
        RescaleError: If one will lose too much.
    """
    is_kept = kept_in_float32(fold.model, torch.float16)
    moves = fold.moved()
    for name, _, _, weight in fold.moved_weights():
        if not is_kept(name):
            back = {rows: -exponent for rows, exponent in moves[name].items()}
            _require_kept(name, weight.detach(), back, {})


def _require_kept(name: str, weight: Tensor, unmoved: Exponents, moved: Exponents) -> None:
    """Check one weight. What float16 loses of it wherever it is, no rescale is to blame for.

    Args:
        name: Of the weight.
        weight: As it is now.
        unmoved: By which exponents it is as it was saved.
        moved: By which it is as it is to be.
    """
    lost = lost_in_half(weight, moved)
    if not lost <= _MOST_LOST and not lost <= lost_in_half(weight, unmoved):
        require_little_lost(name, lost)
