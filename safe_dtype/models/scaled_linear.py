"""A linear layer whose input is scaled into the range of its weights' dtype, row by row, and its output back."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# To what a row is scaled down, as a power of two. Where the output is too large there has to be room above the product;
# where the input is, 2 ** 8, so that numbers 2 ** 22 times smaller than the largest are still exact.
_OF_WIDE, _OF_NARROW = 0, 8
_WIDE = "_safe_dtype_returns_float32"  # in the __dict__ of a scaled layer
BELOW_HOOK = "_old_forward"  # in the __dict__ of a module with a hook of accelerate's: what that calls


class ScaledLinear(nn.Linear):
    """A linear layer that takes any float, and multiplies small numbers by its weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
        """Compute; see `scale_by_input`."""
        exponents = _exponents(self, input)
        return _scaled(self, F.linear(_scaled_down(self, input, exponents), self.weight), exponents)


class ScaledConv1D(Conv1D):  # type: ignore[misc]  # untyped in transformers
    """The same for transformers' linear layer with a transposed weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute; see `scale_by_input`."""
        exponents = _exponents(self, x)
        return _scaled(self, torch.matmul(_scaled_down(self, x, exponents), self.weight), exponents)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: ScaledLinear, Conv1D: ScaledConv1D}
_CLASSES_BEFORE = {after: before for before, after in _CLASSES.items()}


def can_be_scaled(module: nn.Module) -> bool:
    """Whether `module` is a linear layer that computes as its class says: nobody has put a forward of his own on it.

    What a hook of accelerate's calls is the forward that it has found: over several devices every layer has one.
    """
    if type(module) not in _CLASSES or "forward" not in module.__dict__:
        return type(module) in _CLASSES
    called = module.__dict__.get(BELOW_HOOK)
    return hasattr(module, "_hf_hook") and getattr(called, "__func__", None) is type(module).forward


def scale_by_input(module: nn.Module, *, returns_float32: bool) -> None:
    """Have a linear layer scale its input, of any float dtype, by a power of two that is found anew for each row.

    Sums inside the product stay small so, whatever they are added up in. The output is multiplied back in float32, and
    stays there with `returns_float32`, for what comes after it; else it comes in the dtype of the weights. Nothing is
    read from the device. The weights stay what they are.
    """
    become(module, _CLASSES[type(module)])
    module.__dict__[_WIDE] = returns_float32


def scale_no_more(module: nn.Module) -> None:
    """Have a scaled layer compute as it did."""
    if type(module) in _CLASSES_BEFORE:
        become(module, _CLASSES_BEFORE[type(module)])
    module.__dict__.pop(_WIDE, None)


def become(module: nn.Module, module_class: type[nn.Module]) -> None:
    """Have a linear layer compute as `module_class` does, below the hooks of accelerate as well."""
    owner: Any = module
    owner.__class__ = module_class
    if BELOW_HOOK in module.__dict__:
        module.__dict__[BELOW_HOOK] = MethodType(module_class.forward, module)


def _exponents(module: nn.Module, x: Tensor) -> Tensor:
    exponents = torch.frexp(x.detach().float().abs().amax(-1, keepdim=True)).exponent
    return (exponents - (_OF_WIDE if module.__dict__[_WIDE] else _OF_NARROW)).clamp(min=0)


def _scaled_down(module: Any, x: Tensor, exponents: Tensor) -> Tensor:
    small: Tensor = torch.ldexp(x.float(), -exponents).to(module.weight.dtype)
    return small


def _scaled(module: Any, product: Tensor, exponents: Tensor) -> Tensor:
    output = torch.ldexp(product.float(), exponents)
    if module.bias is not None:
        output = output + module.bias.float()
    return output if module.__dict__[_WIDE] else output.to(module.weight.dtype)
