"""The product of few rows by a weight as it was saved, at the speed at which memory is read."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from .machine_code import address_of
from .target import target
from .threads import run

FUNCTION = "multiply_rows"
# What its task holds, 8 bytes each. Strides are in numbers; `next` is the output that no thread has taken yet.
FIELDS = ("weight", "x", "y", "bias", "scales", "outputs", "inputs", "stride", "rows", "next", "at_a_time")
MOST_ROWS = 8
# Bytes of a weight that a thread takes at a time: enough to be read at full speed, few enough to be shared out.
_AT_A_TIME = 2**16
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.int8: "int8"}
_Task = ctypes.c_int64 * len(FIELDS)


def multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`, with sums in float32 that are rounded once to the dtype of `x`.

    Sums have the same bits on any number of threads, in every row of `x` and beside any other row.

    Args:
        x: Shape (..., in_features), in float32, bfloat16 or float16, on the CPU.
        weight: Shape (out_features, in_features), each of its rows contiguous: in the dtype of `x`, in 16 bit beside a
            float32 `x`, or in int8 with `scales`.
        bias: Shape (out_features,), in the dtype of `x`, contiguous; or None.
        scales: What each output is multiplied by before the bias is added: as `bias`.

    Raises:
        RuntimeError: If there is no code for these dtypes on this machine: see `has_code`.
    """
    address = _address(weight.dtype, x.dtype)
    if address is None:
        raise RuntimeError(f"no products of {x.dtype} by {weight.dtype} are compiled here")
    outputs, inputs = weight.shape
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs))
    rows = x.numel() // inputs if inputs else y.numel() // max(1, outputs)
    stride = weight.stride(0)
    at_a_time = max(1, _AT_A_TIME // max(1, inputs * weight.itemsize))
    task = _Task(
        weight.data_ptr(), x.data_ptr(), y.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if scales is None else scales.data_ptr(), outputs, inputs, stride, rows, 0, at_a_time,
    )  # fmt: skip
    run(address, task, threads=None if outputs > at_a_time else 1)
    return y


def has_code(weight: torch.dtype, x: torch.dtype) -> bool:
    """Whether products of these dtypes can be compiled on this machine, and are."""
    return _address(weight, x) is not None


@cache
def _address(weight: torch.dtype, x: torch.dtype) -> int | None:
    stored, computed, cpu = _NAMES.get(weight), _NAMES.get(x), target()
    if stored is None or computed is None or cpu is None or x is torch.int8:
        return None
    if torch.float16 in (weight, x) and not cpu.halves:
        return None
    return address_of(FUNCTION, "row_product_ir", stored, computed)
