"""Have norms of a model divide rows in one pass over them, those whose forward is the one that most models have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.norm_rows import can_normalize, normalize_rows
from . import known_forwards
from .known_code import is_known
from .module_forward import has_forward, put_on, value_of
from .plain_calls import is_plain, is_watched, needs_gradient


@dataclass(frozen=True, slots=True)
class CompiledNorm:
    """A class and its forward, as they were when they were known."""

    kind: type[nn.Module]
    forward: Callable[..., Any]

    def __deepcopy__(self, _memo: Any) -> None:
        """Copies of a module are plain."""


def compile_norms(model: nn.Module, dtype: torch.dtype) -> int:
    """Have the norms of a model with weights in `dtype` compiled; return how many there are.

    Numbers are those of before, or one rounding from them. Norms whose gradients are asked for, and calls that somebody
    follows, are the class's own.
    """
    if not can_normalize(dtype):
        return 0
    count, known = 0, {}
    for module in model.modules():
        forward = type(module).forward
        if forward not in known:
            known[forward] = is_known(forward, known_forwards.NORM)
        if (
            known[forward]
            and "forward" not in module.__dict__
            and not hasattr(type(module), "weight")  # a property, say, which comes before a parameter
            and _weight_of(module, dtype) is not None
        ):
            put_on(module, CompiledNorm(type(module), forward), _forward)
            count += 1
    return count


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if len(args) == 1 and not kwargs and not torch.compiler.is_compiling() and not is_watched():
        with torch._C.DisableTorchFunction():
            result = _normalized(module, args[0])
        if result is not None:
            return result
    return type(module).forward(module, *args, **kwargs)


def normalized(self: nn.Module, x: Tensor) -> Tensor | None:
    """Return what the forward of `self` would make of rows; None where it is not compiled."""
    return _normalized(self, x) if has_forward(self, _forward) else None


def weight_and_epsilon(self: nn.Module, x: Tensor) -> tuple[Tensor, float] | None:
    """Return what the forward of `self` would work with on rows; None where it is not compiled."""
    return _weight_and_epsilon(self, x) if has_forward(self, _forward) else None


def _normalized(self: nn.Module, x: Tensor) -> Tensor | None:
    """Return the normalized rows; None where the class is to do it."""
    divided_by = _weight_and_epsilon(self, x)
    return None if divided_by is None else normalize_rows(x, *divided_by)


def _weight_and_epsilon(self: nn.Module, x: Tensor) -> tuple[Tensor, float] | None:
    value = value_of(self)
    if not isinstance(value, CompiledNorm) or not is_plain(x):
        return None
    # A class that somebody gives to the module later may look its weight up in another way.
    if type(self) is not value.kind or value.kind.forward is not value.forward:
        return None
    weight, epsilon = _weight_of(self, x.dtype), self.__dict__.get("variance_epsilon")
    if (
        weight is None
        or not can_normalize(x.dtype)  # a model that was cast to float64
        or type(epsilon) is not float
        or x.dim() == 0
        or x.shape[-1] != weight.shape[0]
        or not x.numel()
        or not x.is_contiguous()
        or needs_gradient(x, weight)
    ):
        return None
    return weight, epsilon


def _weight_of(module: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """Return the weight of a norm, where it lies plainly, in `dtype`."""
    weight = module._parameters.get("weight")
    is_there = (
        type(weight) is nn.Parameter
        and weight.is_cpu
        and weight.layout is torch.strided
        and weight.dtype is dtype
        and weight.dim() == 1
        and weight.is_contiguous()
        and not weight.is_neg()
        and "weight" not in module.__dict__
    )
    return weight if is_there else None
