"""The product of few rows by weights that were saved with a row for each input, as GPT-2's, without turning these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .machine_code import Kernel
from .row_product import Share
from .target import code_of_tiles
from .threads import room, run

FUNCTION = "multiply_columns"
# What its task holds, and behind that for each weight; 8 bytes each. `wide` is room for the `numbers` of x in float32,
# `chunks` how many parts the inputs are cut into, `stride` how many numbers the rows of a weight are from one another. A
# weight multiplies `rows` rows, from its `row` on; `sums` is room for those of each part.
FIELDS = ("x", "wide", "inputs", "numbers", "weights", "chunks")
OF_WEIGHT = ("weight", "y", "bias", "outputs", "stride", "row", "rows", "sums")
# For up to 8 rows torch takes as long in float32 at one row, else 1.2 to 57 times as long; for 16 from 0.7 times on
# (768 by 3,072 and back, an EPYC with AVX512 and held to AVX2, one thread).
MOST_ROWS = 8
INPUTS_AT_A_TIME = 64  # that a thread takes: sums of so many are added up one after the other
_KERNEL = Kernel(FUNCTION, "column_product_ir", "products of {}", code_of_tiles)


def multiply_columns(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight + bias`, with sums in float32 that are rounded once to the dtype of `x`.

    Sums have the same bits on any number of threads, in every row of `x` and beside any other row.

    Args:
        x: Shape (..., in_features), in float32, bfloat16 or float16, on the CPU.
        weight: Shape (in_features, out_features), each of its rows contiguous, in the dtype of `x`.
        bias: Shape (out_features,), in the dtype of `x`, contiguous; or None.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `has_column_code`.
    """
    inputs, outputs = weight.shape
    leading = x.shape[:-1]
    rows = leading.numel()
    product = x.new_empty((*leading, outputs))
    whole = (weight.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, rows)
    _multiply(x, product, inputs, weight.stride(0), [whole])
    return product


def multiply_columns_by_some(x: Tensor, stack: Tensor, biases: Tensor | None, shares: Sequence[Share]) -> Tensor:
    """Return the products of rows by some matrices of a stack, one below the other; each as of `multiply_columns`.

    Args:
        x: Shape (rows, in_features).
        stack: Shape (matrices, in_features, out_features), each row of a matrix contiguous.
        biases: Shape (matrices, out_features), contiguous; or None.
        shares: Which rows each matrix multiplies.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `has_column_code`.
    """
    _, inputs, outputs = stack.shape
    product = x.new_empty((sum(rows for _, _, rows in shares), outputs))
    weight, step = stack.data_ptr(), stack.stride(0) * stack.itemsize
    bias, bias_step = (0, 0) if biases is None else (biases.data_ptr(), outputs * biases.itemsize)
    _multiply(x, product, inputs, stack.stride(1), [
        (weight + number * step, bias + number * bias_step, row, rows) for number, row, rows in shares
    ])  # fmt: skip
    return product


def _multiply(
    x: Tensor, product: Tensor, inputs: int, stride: int, weights: Sequence[tuple[int, int, int, int]]
) -> None:
    """Write the products by weights, each with its address, that of its bias, its first row and how many it multiplies."""
    address = _KERNEL.address(x.dtype)
    if not product.numel():
        return
    if not x.is_contiguous():
        x = x.contiguous()
    outputs = product.shape[-1]
    chunks = -(-inputs // INPUTS_AT_A_TIME)
    wide_bytes = -(-4 * x.numel() // 64) * 64
    wide = room(wide_bytes + 4 * chunks * product.numel())
    sums, y = wide + wide_bytes, product.data_ptr()
    of_weights: list[int] = []
    for weight, bias, row, rows in weights:
        of_weights += (weight, y, bias, outputs, stride, row, rows, sums)
        y += rows * outputs * product.itemsize
        sums += 4 * chunks * rows * outputs
    fields = (x.data_ptr(), wide, inputs, x.numel(), len(weights), chunks, *of_weights)
    run(address, chunks * len(weights), 1, fields)


def has_column_code(dtype: torch.dtype) -> bool:
    """Whether products in this dtype can be compiled on this machine, and are."""
    return _KERNEL.has(dtype)
