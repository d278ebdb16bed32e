"""Attention of one row over a cache in 16 bit, computed in float32 straight from it, at the speed at which it is read."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from .machine_code import address_of
from .target import target
from .threads import run

FUNCTION = "attend"
# What its task holds, 8 bytes each. Strides are in numbers; `next` is the head that no thread has taken yet.
FIELDS = (
    "query", "keys", "values", "scores", "output", "heads", "shared", "positions", "width", "key_batch", "key_head",
    "key_step", "value_batch", "value_head", "value_step", "next",
)  # fmt: skip
WIDTHS = 32  # a width is a multiple of it
MOST_SHARING = 8
_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_Task = ctypes.c_int64 * len(FIELDS)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return the attention of one row a head, of shape (batch, 1, heads, width): sums in float32, rounded once.

    Args:
        query: Shape (batch, heads, 1, width), on the CPU, in bfloat16 or float16.
        key: Shape (batch, shared heads, positions, width), in the dtype of `query`, the last dimension contiguous;
            `heads` is a multiple of `shared heads`, and `width` of `WIDTHS`.
        value: As `key`.
        scale: What scores are multiplied by before the softmax.

    Raises:
        RuntimeError: If there is no code for this on this machine: see `can_attend`.
    """
    batch, heads, _, width = query.shape
    shared, positions = key.shape[1:3]
    address = _address(query.dtype, heads // shared)
    if address is None:
        raise RuntimeError(f"no attention of {heads // shared} heads each in {query.dtype} is compiled here")
    row = query.reshape(batch, heads, width).contiguous().float().mul_(scale)
    scores = torch.empty((batch, heads, positions), dtype=torch.float32, device="cpu")
    output = torch.empty((batch, 1, heads, width), dtype=torch.float32, device="cpu")
    task = _Task(
        row.data_ptr(), key.data_ptr(), value.data_ptr(), scores.data_ptr(), output.data_ptr(), batch * shared, shared,
        positions, width, *key.stride()[:3], *value.stride()[:3], 0,
    )  # fmt: skip
    run(address, task, threads=None if batch * shared > 1 else 1)
    return output.to(query.dtype)


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend` computes this on this machine."""
    heads, shared = query.shape[1], key.shape[1]
    return (
        query.shape[3] % WIDTHS == 0
        and heads % shared == 0
        and heads // shared <= MOST_SHARING
        and key.stride(3) == value.stride(3) == 1
        and _address(query.dtype, heads // shared) is not None
    )


@cache
def _address(dtype: torch.dtype, group: int) -> int | None:
    name, cpu = _NAMES.get(dtype), target()
    if name is None or cpu is None or (dtype is torch.float16 and not cpu.halves):
        return None
    return address_of(FUNCTION, "attention_row_ir", name, str(group))
