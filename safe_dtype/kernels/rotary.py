"""Queries and keys turned by their positions, without temporaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .machine_code import Kernel
from .programs.call import At, KernelCall
from .target import code_of_floats
from .threads import run

FUNCTION = "turn"
# What its task holds, 8 bytes each; strides are in numbers.
_OF_HEADS = ("x", "y", "heads", "batch", "head", "step", "y_batch", "y_head", "y_step")
FIELDS = (
    *(f"query_{name}" for name in _OF_HEADS), *(f"key_{name}" for name in _OF_HEADS), "cos", "sin", "cos_batch",
    "cos_step", "sin_batch", "sin_step", "positions", "width",
)  # fmt: skip
_AT_A_TIME = 2**14  # numbers that a thread takes at a time
_KERNEL = Kernel(FUNCTION, "rotary_ir", "rotations in {}", code_of_floats)


def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return `x * cos + rotate_half(x) * sin` of queries and keys, with the bits of transformers: each step is rounded.

    Args:
        query: Shape (batch, heads, positions, width), the last dimension contiguous and even, on the CPU, in float32,
            bfloat16 or float16.
        key: As `query`, of its own number of heads.
        cos: Shape (batch or 1, positions, width), in the dtype of `query`, the last dimension contiguous.
        sin: As `cos`.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `can_turn`.
    """
    address = _KERNEL.address(query.dtype)
    batch, heads, positions, width = query.shape
    turned = torch.empty_like(query), torch.empty_like(key)
    fields: list[int] = []
    for x, y in zip((query, key), turned, strict=True):
        fields += (x.data_ptr(), y.data_ptr(), x.shape[1], *x.stride()[:3], *y.stride()[:3])
    fields += (cos.data_ptr(), sin.data_ptr())
    for table in (cos, sin):
        fields += (table.stride(0) if table.shape[0] > 1 else 0, table.stride(1))
    row = width * (heads + key.shape[1])
    run(address, batch * positions, max(1, _AT_A_TIME // row), (*fields, positions, width))
    return turned


def turn_of_heads(
    heads: Sequence[tuple[At, At, int, Sequence[int | At]]], cos: tuple[At, int, int], sin: tuple[At, int, int],
    shape: tuple[int, int, int], dtype: torch.dtype,
) -> KernelCall:  # fmt: skip
    """Return the call that turns queries and keys as `turn` does.

    Args:
        heads: Of queries and of keys: where the numbers of shape (batch, positions, heads, width) lie, where they are
            written, how many heads there are, and where the next item of the batch, the next head and the next position
            are written, in numbers from the one before.
        cos: Where the table lies, and its strides in numbers from one item of the batch, and one position, to the next.
        sin: As `cos`.
        shape: batch, positions and width.
        dtype: Of all numbers.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `can_turn`.
    """
    batch, positions, width = shape
    fields: list[int | At] = []
    for x, y, count, strides in heads:
        fields += (x, y, count, positions * count * width, width, count * width, *strides)
    fields += (cos[0], sin[0], *cos[1:], *sin[1:], positions, width)
    row = width * sum(count for _, _, count, _ in heads)
    return KernelCall(_KERNEL.address(dtype), batch * positions, max(1, _AT_A_TIME // row), fields)


def can_turn(dtype: torch.dtype) -> bool:
    """Whether `turn` computes in `dtype` on this machine."""
    return _KERNEL.has(dtype)
