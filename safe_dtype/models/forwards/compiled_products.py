"""Have the linear modules of a model multiply few rows by code that is compiled for this CPU, from weights as they lie."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from ...kernels.row_product import Weighed, has_code, multiply_rows
from .blocked_forward import weighed_rows
from .module_forward import has_forward, put_on, value_of
from .plain_calls import is_bias, is_plain, is_watched, needs_gradient

logger = logging.getLogger(__name__)

# Below this, the calls around the product cost more than it saves: 10 us, or 250 kB read.
LEAST_ELEMENTS = 2**18
_LINEAR, _LINEAR_FUNCTION = nn.Linear.forward, torch._C._nn.linear


@dataclass(frozen=True, slots=True)
class CompiledProducts:
    """Which products of a module are compiled: those by a weight of this dtype, of so many rows."""

    dtype: torch.dtype
    most_rows: int

    def __deepcopy__(self, _memo: Any) -> None:
        """Copies of a module are plain."""


def compile_products(model: nn.Module, dtype: torch.dtype, most_rows: int) -> int:
    """Let products of up to `most_rows` rows by the model's weights in `dtype` be compiled; return of how many modules.

    Weights stay where they are, and are read there at each call, whatever has been written to them. Modules and
    parameters stay what they are. More rows, products whose gradients are asked for, and calls that somebody follows
    (compiled, exported and traced graphs, transforms and modes of torch) are torch's own.

    Args:
        model: Changed in place; `block_layout.take_back` undoes it.
        dtype: Of the weights and of what they are multiplied by.
        most_rows: Of one call.
    """
    if not has_code(dtype, dtype):
        return 0
    products, count = CompiledProducts(dtype, most_rows), 0
    for module in _linear_modules(model, dtype):
        put_on(module, products, _forward)
        count += 1
    logger.debug("%s: products of up to %d rows compiled in %d modules", type(model).__name__, most_rows, count)
    return count


def products_of(module: nn.Module) -> CompiledProducts | None:
    """Return which products of `module` are compiled; None where none are."""
    products = value_of(module)
    return products if isinstance(products, CompiledProducts) else None


def _linear_modules(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Linear]:
    for module in model.modules():
        # A subclass, and a module whose forward an offloading hook has replaced, compute in their own way.
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            weight = module._parameters.get("weight")
            if weight is not None and weight.numel() >= LEAST_ELEMENTS and lies_plainly(weight, dtype):
                yield module


def _forward(module: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
    """Multiply, few rows by the compiled product where nobody would see another difference than its speed."""
    if not torch.compiler.is_compiling() and not is_watched():
        # Modes of ours that are around would be asked at each size and address that is read below, 1 us a time.
        with torch._C.DisableTorchFunction():
            result = _product(module, input)
        if result is not None:
            return result
    return type(module).forward(module, input)


def _product(module: nn.Linear, x: Tensor) -> Tensor | None:
    """Return the compiled product; None where it is torch's to compute."""
    weight = _weighed(module, x)
    return None if weight is None else multiply_rows(x, *weight)


def weighed(module: nn.Module, x: Tensor) -> Weighed | None:
    """Return what the forward of `module` would multiply `x` by; None where its product is not compiled."""
    return _weighed(module, x) if has_forward(module, _forward) else weighed_rows(module, x)


def _weighed(module: nn.Module, x: Tensor) -> Weighed | None:
    products, parameters = products_of(module), module._parameters
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if (
        products is None
        or weight is None
        or "bias" not in parameters
        or not takes(products, x)
        or not lies_plainly(weight, products.dtype)
        or x.shape[-1] != weight.shape[1]
        or not (bias is None or is_bias(bias, weight.dtype, weight.shape[0]))
        or not _is_torchs_own(module)
        or torch.is_autocast_enabled("cpu")
        or needs_gradient(x, weight, bias)
    ):
        return None
    return weight, bias, None


def takes(products: CompiledProducts, x: Tensor) -> bool:
    """Whether `x` has as many rows as the product is compiled for, and numbers of its dtype."""
    return (
        is_plain(x) and x.dtype is products.dtype and x.dim() > 0 and 0 < x.numel() <= products.most_rows * x.shape[-1]
    )


def lies_plainly(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the rows of a weight are numbers in this process's memory, one beside the other."""
    return (
        type(weight) is nn.Parameter
        and weight.is_cpu
        and weight.layout is torch.strided
        and weight.dtype is dtype
        and weight.dim() == 2
        and weight.stride(1) == 1
        and not weight.is_neg()
    )


def _is_torchs_own(module: nn.Module) -> bool:
    """Whether its forward would be torch's: of its class, with its parameters in their places, and no patch around."""
    own = module.__dict__
    return (
        type(module) is nn.Linear
        and "weight" not in own
        and "bias" not in own
        and F.linear is _LINEAR_FUNCTION
        and nn.Linear.forward is _LINEAR
    )
