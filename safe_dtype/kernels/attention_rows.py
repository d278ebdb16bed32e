"""Attention of many rows, as of a prompt, in float32: what no row of a part sees is not multiplied.

torch's kernel for a CPU takes keys 512 at a time, so of a causal prompt of 512 it multiplies all the half that is masked
out. In 16 bit it computes scores in float32 as well, and then rounds them; here nothing is rounded but the result. All heads
are one parallel region, whose threads take parts of it: one that waits for a core keeps nobody waiting before the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .machine_code import Kernel
from .target import code_of_tiles, target
from .threads import bits_of, room, run

FUNCTION = "attend_rows"
# What its task holds, 8 bytes each. Strides are in numbers, of `seen` in bytes, which is 0 where there is no mask; `scale` is
# the bits of a float; `rooms` is what each worker has `room_size` bytes of.
FIELDS = (
    "begun", "query", "keys", "values", "output", "seen", "rooms", "room_size", "scale", "is_causal", "heads", "shared",
    "rows", "positions", "width", "value_width", "at_once", "chunks", "query_batch", "query_head", "query_row", "key_batch",
    "key_head", "key_step", "value_batch", "value_head", "value_step", "seen_batch", "seen_row",
)  # fmt: skip
BLOCK = 64  # positions whose scores are computed at a time
_ROWS = 128  # of all heads that share keys, in one part
_KERNEL = Kernel(FUNCTION, "attention_rows_ir", "rows of attention in {}", code_of_tiles)


def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, is_causal: bool, scale: float | None = None
) -> Tensor:  # fmt: skip
    """Return the attention of every head, of shape (batch, rows, heads, width), contiguous, in the dtype of `query`.

    As in torch a row that sees nothing is zero.

    Args:
        query: Shape (batch, heads, rows, width), on the CPU, in float32, bfloat16 or float16.
        key: Shape (batch, heads that are shared, positions, width), in the dtype of `query`.
        value: Shape (batch, heads that are shared, positions, width of values), in the dtype of `query`.
        mask: Shape (batch or 1, 1, rows, positions), bools: what is seen; None where `is_causal` says it, or all is.
        is_causal: Whether row r sees the positions up to r, where there is no mask.
        scale: Of the scores; None: one over the root of the width.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `can_attend_rows`.
    """
    address = _KERNEL.address(query.dtype)
    query, key, value = (one if one.stride(3) == 1 else one.contiguous() for one in (query, key, value))
    if mask is not None and mask.stride(3) != 1:
        mask = mask.contiguous()
    batch, heads, rows, width = query.shape
    shared, positions, value_width = key.shape[1], key.shape[2], value.shape[3]
    output = torch.empty((batch, rows, heads, value_width), dtype=query.dtype, device="cpu")
    lanes = _lanes()
    at_once = max(1, min(_ROWS // (heads // shared) // lanes, -(-rows // lanes))) * lanes
    chunks = -(-rows // at_once)
    room_size = 4 * _room_numbers(at_once * (heads // shared), lanes, width, value_width)
    fields = (
        0, query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr(), 0 if mask is None else mask.data_ptr(),
        room(room_size * torch.get_num_threads()), room_size, bits_of(width**-0.5 if scale is None else scale),
        is_causal and mask is None, heads, shared, rows, positions, width, value_width, at_once, chunks,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        0 if mask is None or mask.shape[0] == 1 else mask.stride(0), 0 if mask is None else mask.stride(2),
    )  # fmt: skip
    run(address, batch * shared * chunks, 1, fields)
    return output


def can_attend_rows(dtype: torch.dtype) -> bool:
    """Whether attention of rows in `dtype` can be computed on this machine."""
    return _KERNEL.has(dtype)


def _room_numbers(rows: int, lanes: int, width: int, value_width: int) -> int:
    """Return how many floats a worker needs, of which `attention_rows_ir` has the order; a multiple of 16, a line."""
    lines = rows * (width + value_width + 3) + BLOCK * (width + value_width + 2 * lanes)
    return -(-lines // 16) * 16


def _lanes() -> int:
    cpu = target()
    assert cpu is not None  # there is code for it
    return cpu.tile[1]
