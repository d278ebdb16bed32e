"""The product of few rows by weights as they were saved, at the speed at which memory is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from .machine_code import Kernel
from .programs.call import At, KernelCall
from .target import name_in_code, target
from .threads import room, run

FUNCTION = "multiply_rows"
# What its task holds, and behind that for each weight; 8 bytes each. Strides are in numbers, `wide` is room for the rows
# in float32, `begin` the number of a weight's first output among those of all; `is_gated` is 1 or 0. A weight multiplies as
# many rows as it says, from its `row` on.
FIELDS = ("x", "wide", "inputs", "rows", "weights", "is_gated")
OF_WEIGHT = ("weight", "y", "bias", "scales", "outputs", "stride", "begin", "row", "rows")
MOST_ROWS = 16
# Bytes that a thread takes at a time: two parts for each thread, as long as these are read at full speed. Where two
# threads take turns at 64 kB each, what is read ahead for the one is the other's, and both read a fifth slower than at 1 MB.
_LEAST_AT_A_TIME, _MOST_AT_A_TIME = 2**16, 2**20
_CODES = {torch.int8: "int8", torch.uint8: "int4"}  # of int4 two numbers in a byte


def _code_of(x: torch.dtype, weight: torch.dtype) -> tuple[str, ...] | None:
    computed, stored, cpu = name_in_code(x), _CODES.get(weight) or name_in_code(weight), target()
    return None if computed is None or stored is None or cpu is None else (stored, computed, str(cpu.sums))


_KERNEL = Kernel(FUNCTION, "row_product_ir", "products of {} by {}", _code_of)

# A matrix of a stack of them, the first of the rows that it multiplies, and how many these are.
Share: TypeAlias = tuple[int, int, int]
# A weight, its bias and its scales, as `multiply_rows` takes them.
Weighed: TypeAlias = "tuple[Tensor, Tensor | None, Tensor | None]"
_Place = TypeVar("_Place", int, "int | At")  # an address, or one that is known later


def multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`, with sums in float32 that are rounded once to the dtype of `x`.

    Sums have the same bits on any number of threads, in every row of `x` and beside any other row.

    Args:
        x: Shape (..., in_features), in float32, bfloat16 or float16, on the CPU.
        weight: Shape (out_features, in_features), each of its rows contiguous: in the dtype of `x`, in 16 bit beside a
            float32 `x`, or in int8 with `scales`. In uint8 it is of int4, of shape (out_features, in_features / 2): see
            `vectors.read_group`.
        bias: Shape (out_features,), in the dtype of `x`, contiguous; or None.
        scales: What each output is multiplied by before the bias is added: as `bias`. Of int4 what every 32 inputs are
            multiplied by, of shape (out_features, in_features / 32).

    Raises:
        RuntimeError: If there is no code for these dtypes on this machine: see `has_code`.
    """
    return multiply_rows_by_each(x, ((weight, bias, scales),))[0]


def multiply_rows_by_each(x: Tensor, weights: Sequence[Weighed]) -> list[Tensor]:
    """Return the products of the same rows by several weights, in one pass over all of them; each as of `multiply_rows`.

    Args:
        x: As of `multiply_rows`.
        weights: Each with its bias and its scales, all in one dtype and of one in_features.

    Raises:
        RuntimeError: If there is no code for these dtypes on this machine: see `has_code`.
    """
    return _multiplied(x, weights)


def multiply_rows_gated(x: Tensor, gate: Weighed, weight: Weighed) -> Tensor:
    """Return `silu(x @ gate.T) * (x @ weight.T)`, each of the four steps rounded once to the dtype of `x`.

    Args:
        x: As of `multiply_rows`.
        gate: With its bias and its scales.
        weight: As `gate`, and of its shape.

    Raises:
        RuntimeError: If there is no code for these dtypes on this machine: see `has_code`.
    """
    return _multiplied(x, (gate, weight), is_gated=True)[0]


def multiply_rows_by_some(x: Tensor, stack: Tensor, biases: Tensor | None, shares: Sequence[Share]) -> Tensor:
    """Return the products of rows by some matrices of a stack, one below the other; each as of `multiply_rows`.

    Args:
        x: Shape (rows, in_features).
        stack: Shape (matrices, out_features, in_features), each row of a matrix contiguous.
        biases: Shape (matrices, out_features), contiguous; or None.
        shares: Which rows each matrix multiplies.

    Raises:
        RuntimeError: If there is no code for these dtypes on this machine: see `has_code`.
    """
    address = _KERNEL.address(x.dtype, stack.dtype)
    if not x.is_contiguous():
        x = x.contiguous()
    _, outputs, inputs = stack.shape
    product = x.new_empty((sum(rows for _, _, rows in shares), outputs))
    at_a_time = _at_a_time(outputs * len(shares), inputs * stack.itemsize, torch.get_num_threads())
    weight, stride, step = stack.data_ptr(), stack.stride(1), stack.stride(0) * stack.itemsize
    bias, bias_step = (0, 0) if biases is None else (biases.data_ptr(), outputs * biases.itemsize)
    y, begin, for_each = product.data_ptr(), 0, -(-outputs // at_a_time) * at_a_time
    of_weights: list[int] = []
    for number, row, rows in shares:
        of_weights += (
            weight + number * step, y, bias + number * bias_step, 0, outputs, stride, begin, row, rows,
        )  # fmt: skip
        y += rows * outputs * product.itemsize
        begin += for_each
    wide = room(4 * x.numel())
    run(address, begin, at_a_time, (x.data_ptr(), wide, inputs, len(x), len(shares), 0, *of_weights))
    return product


def _multiplied(x: Tensor, weights: Sequence[Weighed], *, is_gated: bool = False) -> list[Tensor]:
    first = weights[0][0]
    address = _KERNEL.address(x.dtype, first.dtype)
    inputs = x.shape[-1]
    if not x.is_contiguous():
        x = x.contiguous()
    leading = x.shape[:-1]
    rows = leading.numel()
    at_a_time = _at_a_time(
        sum(weight.shape[0] for weight, _, _ in weights), first.shape[1] * first.itemsize, torch.get_num_threads()
    )
    products = [x.new_empty((*leading, weight.shape[0])) for weight, _, _ in weights]
    of_weights, end = _of_weights([*zip(weights, (one.data_ptr() for one in products), strict=True)], rows, at_a_time)
    wide = room(4 * rows * inputs)
    run(address, end, at_a_time, (x.data_ptr(), wide, inputs, rows, len(products), is_gated, *of_weights))
    return products


def product_of_rows(
    x: At,
    wide: At,
    weights: Sequence[tuple[Weighed, At]],
    kind: tuple[torch.dtype, int, int],
    *,
    is_gated: bool = False,
) -> KernelCall:
    """Return the call that multiplies rows as `multiply_rows_by_each` does, or, by two weights, as `multiply_rows_gated`.

    It holds the addresses of the weights: whoever makes it sees to it that they lie there still.

    Args:
        x: Where the rows lie, one behind the other.
        wide: Room for as many floats.
        weights: As of `multiply_rows_by_each`; each with where its product is written, its rows one behind the other.
        kind: The dtype of the rows, how many there are, and how many threads share the work.
        is_gated: Whether the second product is multiplied by SiLU of the first, in the place of the first.

    Raises:
        RuntimeError: If there is no code for these dtypes on this machine: see `has_code`.
    """
    dtype, rows, threads = kind
    first = weights[0][0][0]
    at_a_time = _at_a_time(
        sum(weight.shape[0] for (weight, _, _), _ in weights), first.shape[1] * first.itemsize, threads
    )
    of_weights, end = _of_weights(weights, rows, at_a_time)
    fields = (x, wide, first.shape[1] * _numbers_each(first), rows, len(weights), int(is_gated), *of_weights)
    return KernelCall(_KERNEL.address(dtype, first.dtype), end, at_a_time, fields)


def _of_weights(
    weights: Sequence[tuple[Weighed, _Place]], rows: int, at_a_time: int
) -> tuple[list[int | _Place], int]:
    """Return what a task holds for weights and the places of their products, and where its parts end."""
    fields: list[int | _Place] = []
    begin = 0
    for (weight, bias, scales), product in weights:
        outputs = weight.shape[0]
        fields += (
            weight.data_ptr(), product, 0 if bias is None else bias.data_ptr(), 0 if scales is None else scales.data_ptr(),
            outputs, weight.stride(0) * _numbers_each(weight), begin, 0, rows,
        )  # fmt: skip
        begin += -(-outputs // at_a_time) * at_a_time
    return fields, begin


def _numbers_each(weight: Tensor) -> int:
    """Return how many numbers there are in one of the tensor's own."""
    return 2 if weight.dtype is torch.uint8 else 1


def has_code(weight: torch.dtype, x: torch.dtype) -> bool:
    """Whether products of these dtypes can be compiled on this machine, and are."""
    return _KERNEL.has(x, weight)


@lru_cache
def _at_a_time(outputs: int, row_bytes: int, threads: int) -> int:
    share = outputs * row_bytes // (2 * threads)
    return max(1, min(_MOST_AT_A_TIME, max(_LEAST_AT_A_TIME, share)) // max(1, row_bytes))
