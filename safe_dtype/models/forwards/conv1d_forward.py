"""Have GPT-2's linear modules, `Conv1D`, multiply few rows by compiled code, from weights that lie with a row for each input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...kernels.column_product import has_column_code, multiply_columns
from .compiled_products import LEAST_ELEMENTS, CompiledProducts, lies_plainly, products_of, takes
from .module_forward import put_on
from .plain_calls import is_bias, is_watched, needs_gradient

_FORWARD, _FUNCTION = Conv1D.forward, torch.addmm


def compile_columns(model: nn.Module, dtype: torch.dtype, most_rows: int) -> int:
    """Let products of up to `most_rows` rows by the `Conv1D` of a model in `dtype` be compiled; return how many there are.

    All that `compile_products` says of linear modules holds of these.

    Args:
        model: Changed in place; `block_layout.take_back` undoes it.
        dtype: Of the weights and of what they are multiplied by.
        most_rows: Of one call.
    """
    if not has_column_code(dtype):
        return 0
    products, count = CompiledProducts(dtype, most_rows), 0
    for module in model.modules():
        if type(module) is Conv1D and "forward" not in module.__dict__:
            weight = module._parameters.get("weight")
            if weight is not None and weight.numel() >= LEAST_ELEMENTS and lies_plainly(weight, dtype):
                put_on(module, products, _forward)
                count += 1
    return count


def _forward(module: Any, x: Tensor) -> Tensor:
    """Multiply, few rows by the compiled product where nobody would see another difference than its speed."""
    if not torch.compiler.is_compiling() and not is_watched():
        with torch._C.DisableTorchFunction():
            result = _product(module, x)
        if result is not None:
            return result
    return type(module).forward(module, x)  # type: ignore[no-any-return]


def _product(module: Any, x: Tensor) -> Tensor | None:
    """Return the compiled product; None where it is torch's to compute."""
    products, parameters, own = products_of(module), module._parameters, module.__dict__
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if (
        products is None
        or weight is None
        or bias is None
        or not takes(products, x)
        or not x.is_contiguous()
        or not lies_plainly(weight, products.dtype)
        or (x.shape[-1], module.nf) != weight.shape
        or not is_bias(bias, weight.dtype, weight.shape[1])
        or type(module) is not Conv1D
        or Conv1D.forward is not _FORWARD
        or torch.addmm is not _FUNCTION
        or "weight" in own
        or "bias" in own
        or torch.is_autocast_enabled("cpu")
        or needs_gradient(x, weight, bias)
    ):
        return None
    return multiply_columns(x, weight, bias)
