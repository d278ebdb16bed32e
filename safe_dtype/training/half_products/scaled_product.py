"""A product in float16 that cannot overflow, nor can its gradients: each operand is scaled by a power of two, and the result back.

What float16's own loss scale is for a whole model, this is for one product, found anew for each call: neither the small
gradients of other layers nor those of this one are lost for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

# Below which power of two an operand is brought: the norm of its longest row and column, so that by Cauchy and Schwarz no
# sum in forward or backward, nor a part of one, comes to 2 ** 15. A bias is added to sums of half of that.
_OF_INPUT, _OF_WEIGHT, _OF_GRADIENT, _OF_BIAS = 8, 7, 7, 14
_OF_SUM = 15

Product = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
Note = Callable[[str, Tensor], None]


def scaled_product(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, note: Note) -> Tensor:
    """Return `product(x, weight, bias)` in float32, with every number rounded as float16 rounds it.

    Computed in float16, by the kernels of torch, on operands multiplied by powers of two, and multiplied back in float32; so
    are the gradients. Where the plain product and its gradients stay inside float16's normal numbers, every bit is the
    same. Beyond, nothing overflows, and what is 2 ** 21 times smaller than the norm of the longest row or column of its
    operand is rounded to 2 ** -32 of that. Nothing is read from the device.

    Args:
        product: Of torch: `F.linear`, say. Its inner dimensions are those of rows and columns.
        x: Shape (..., in_features), in any float.
        weight: Of two dimensions, in any float.
        bias: Shape (out_features,), or None.
        note: Called with the name of a number and a tensor of such numbers, unscaled, as soon as they are known: "input",
            "output", and in backward "of output", "of input", "of weight" and "of bias".
    """
    call = _Call(note)
    with torch.no_grad():
        call.weight = _factor(_longest(weight), _OF_WEIGHT)
        length = _longest(x)
        if bias is not None:
            largest = bias.abs().amax().float() * call.weight
            length = torch.maximum(length, largest * 2.0 ** (_OF_INPUT - _OF_BIAS))
        call.input = _factor(length, _OF_INPUT)
    call.has_bias = bias is not None and bias.requires_grad
    note("input", x.detach())
    rounded, multiplied_back = cast(Any, _Rounded.apply), cast(Any, _MultipliedBack.apply)  # untyped in torch
    half_bias = None if bias is None else rounded(bias, call, "bias")
    return multiplied_back(product(rounded(x, call, "input"), rounded(weight, call, "weight"), half_bias), call)  # type: ignore[no-any-return]


class _Call:
    """By what the operands of one call are multiplied: tensors of no dimension, in float32."""

    __slots__ = ("gradient", "has_bias", "input", "note", "weight")

    gradient: Tensor  # of each backward pass anew
    input: Tensor
    weight: Tensor
    has_bias: bool

    def __init__(self, note: Note) -> None:
        self.note = note

    def of(self, name: str) -> tuple[Tensor, ...]:
        """Return the factors of an operand. The bias is multiplied as the product is."""
        return {"input": (self.input,), "weight": (self.weight,), "bias": (self.input, self.weight)}[name]

    def of_gradient(self, name: str) -> tuple[Tensor, ...]:
        """Return those of the gradient of an operand."""
        return {"input": (self.weight,), "weight": (self.input,), "bias": ()}[name] + (self.gradient,)


class _Rounded(torch.autograd.Function):
    """Multiplies an operand and rounds it to float16; its gradient is multiplied back, in float32."""

    @staticmethod
    def forward(ctx: Any, operand: Tensor, call: _Call, name: str) -> Tensor:
        ctx.call, ctx.name, ctx.dtype = call, name, operand.dtype
        return _multiplied(operand, call.of(name)).half()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        exact = _divided(gradient, ctx.call.of_gradient(ctx.name))
        ctx.call.note(f"of {ctx.name}", exact)
        return exact.to(ctx.dtype), None, None


class _MultipliedBack(torch.autograd.Function):
    """Returns a product in float32, as it would be of the operands themselves; rounds its gradient to float16, multiplied."""

    @staticmethod
    def forward(ctx: Any, product: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        exact = _divided(product, call.of("bias"))
        call.note("output", exact)
        return exact

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        call: _Call = ctx.call
        call.note("of output", gradient)
        length = _longest(gradient)
        if call.has_bias:
            sums = gradient.reshape(-1, gradient.shape[-1]).sum(0).abs().amax().float()
            length = torch.maximum(length, sums * 2.0 ** (_OF_GRADIENT - _OF_SUM))
        call.gradient = _factor(length, _OF_GRADIENT)
        return _multiplied(gradient, (call.gradient,)).half(), None


def _longest(operand: Tensor) -> Tensor:
    """Return the norm of its longest row or column, in float32."""
    flat = operand.reshape(-1, operand.shape[-1])
    norms = (torch.linalg.vector_norm(flat, dim=dim, dtype=torch.float32).amax() for dim in (0, 1))
    return torch.maximum(*norms)


def _factor(length: Tensor, end: int) -> Tensor:
    """Return the power of two that brings `length` below 2 ** end, and not below half of that."""
    exponent = (length.view(torch.int32) >> 23) - 127  # that of a float32: no logarithm is exact everywhere
    shift = (end - 1 - exponent).clamp(-126, 126)
    factor = (shift + 127 << 23).view(torch.float32)
    return factor + length * 0  # for what is not finite there is none, and the product is NaN


def _multiplied(tensor: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    product = tensor.float()
    for factor in factors:  # one after the other: their product may be out of range
        product = product * factor
    return product


def _divided(tensor: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    quotient = tensor.float()
    for factor in factors:
        quotient = quotient / factor
    return quotient
