"""Attention of one row over a cache in 16 bit, computed in float32 straight from it, at the speed at which it is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .machine_code import Kernel
from .programs.call import At, KernelCall
from .target import code_of_floats
from .threads import bits_of, room, run

FUNCTION = "attend"
# What its task holds, 8 bytes each. Strides are in numbers, `scale` is the bits of a float; `wide` is room for the query
# in float32, `scores` for one number a head and position.
FIELDS = (
    "query", "keys", "values", "output", "wide", "scores", "scale", "shared", "positions", "width", "query_batch",
    "query_head", "key_batch", "key_head", "key_step", "value_batch", "value_head", "value_step",
)  # fmt: skip
WIDTHS = 32  # a width is a multiple of it
MOST_SHARING = 8


def _code_of(dtype: torch.dtype, group: int) -> tuple[str, ...] | None:
    code = code_of_floats(dtype) if dtype is not torch.float32 else None
    return None if code is None else (*code, str(group))


_KERNEL = Kernel(FUNCTION, "attention_row_ir", "rows of attention in {} with {} heads to shared ones", _code_of)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return the attention of one row a head, of shape (batch, 1, heads, width): sums in float32, rounded once.

    Where all scores of a head are -Inf it is zero, as torch has it.

    Args:
        query: Shape (batch, heads, 1, width), on the CPU, in bfloat16 or float16, the last dimension contiguous.
        key: Shape (batch, shared heads, positions, width), in the dtype of `query`, the last dimension contiguous;
            `heads` is a multiple of `shared heads`, and `width` of `WIDTHS`.
        value: As `key`.
        scale: What scores are multiplied by before the softmax.

    Raises:
        RuntimeError: If there is no code for this on this machine: see `can_attend`.
    """
    batch, heads, _, width = query.shape
    _, shared, positions, _ = key.shape
    address = _KERNEL.address(query.dtype, heads // shared)
    output = torch.empty((batch, 1, heads, width), dtype=query.dtype, device="cpu")
    wide = room(4 * batch * heads * (width + positions))
    query_batch, query_head, _, _ = query.stride()
    fields = (
        query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr(), wide, wide + 4 * batch * heads * width,
        bits_of(scale), shared, positions, width, query_batch, query_head, *key.stride()[:3], *value.stride()[:3],
    )  # fmt: skip
    run(address, batch * shared, 1, fields)
    return output


def attention_of_row(
    places: tuple[At, At, At, At, At, At], strides: Sequence[int | At], positions: At, shape: tuple[int, int, int, int],
    scale: float, dtype: torch.dtype,
) -> KernelCall:  # fmt: skip
    """Return the call that writes the attention of one row a head as `attend` does.

    Args:
        places: Of the query, of shape (batch, heads, width), of keys, values and the output, of room for the query in
            float32, and for a float a head and position.
        strides: Of keys and of values: from one item of the batch, one head and one position to the next, in numbers.
        positions: How many there are.
        shape: batch, heads, shared heads and width.
        scale: What scores are multiplied by before the softmax.
        dtype: Of all numbers.

    Raises:
        RuntimeError: If there is no code for this on this machine: see `has_attention`.
    """
    batch, heads, shared, width = shape
    fields = (*places, bits_of(scale), shared, positions, width, heads * width, width, *strides)
    return KernelCall(_KERNEL.address(dtype, heads // shared), batch * shared, 1, fields)


def has_attention(heads: int, shared: int, width: int, dtype: torch.dtype) -> bool:
    """Whether `attend` computes attention of so many heads, and heads that are shared, of a width on this machine."""
    return (
        width % WIDTHS == 0
        and shared > 0
        and heads % shared == 0
        and heads // shared <= MOST_SHARING
        and _KERNEL.has(dtype, heads // shared)
    )


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend` computes this on this machine."""
    return (
        query.stride(3) == key.stride(3) == value.stride(3) == 1
        and not (query.is_neg() or key.is_neg() or value.is_neg())
        and has_attention(query.shape[1], key.shape[1], query.shape[3], query.dtype)
    )
