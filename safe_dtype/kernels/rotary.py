"""Queries and keys turned by their positions, without temporaries."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .machine_code import address_of
from .target import name_in_code
from .threads import run

FUNCTION = "turn"
# What its task holds, 8 bytes each; strides are in numbers.
_OF_HEADS = ("x", "y", "heads", "batch", "head", "step", "y_batch", "y_head", "y_step")
FIELDS = (
    *(f"query_{name}" for name in _OF_HEADS), *(f"key_{name}" for name in _OF_HEADS), "cos", "sin", "cos_batch",
    "cos_step", "sin_batch", "sin_step", "positions", "width",
)  # fmt: skip
_AT_A_TIME = 2**14  # numbers that a thread takes at a time


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
    address = _address(query.dtype)
    if address is None:
        raise RuntimeError(f"no rotation in {query.dtype} is compiled here")
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


def can_turn(dtype: torch.dtype) -> bool:
    """Whether `turn` computes in `dtype` on this machine."""
    return _address(dtype) is not None


@cache
def _address(dtype: torch.dtype) -> int | None:
    name = name_in_code(dtype)
    return None if name is None else address_of(FUNCTION, "rotary_ir", name)
