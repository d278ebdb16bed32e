"""Attention of a prompt in chunks of its rows, in float32 by oneDNN: what no row of a chunk sees is not multiplied.

torch's kernel for a CPU takes keys 512 at a time, so of a causal prompt of 512 it multiplies all the half that is masked
out, and it multiplies by the BLAS of `onednn_product`. In 16 bit it computes scores in float32 as well, and then rounds
them; here nothing is rounded but the result.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .onednn_product import has_product, product_by_onednn

CHUNK = 128  # rows: 64 and 256 take a tenth longer
# Each of a chunk's products waits for all threads. On a machine whose cores others used as well, a prompt of 512 tokens took
# 126 s on two threads, where with torch's kernel, which waits once a layer, it took 23 s.
_MOST_THREADS = 1


class _Sight(NamedTuple):
    """What the rows of a chunk see: positions from `first` to `last`, less what they do not."""

    first: int
    last: int
    hidden: Tensor | None = None  # 0 or -Inf, added to the scores of the last positions; shape (rows, positions)
    blind: Tensor | None = None  # the rows that see nothing; None where there are none


def are_chunks_worthwhile() -> bool:
    """Whether chunks are as fast as they were measured, whatever else the machine is doing."""
    return torch.get_num_threads() <= _MOST_THREADS and has_product()


def attention_in_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool,
    scale: float | None = None,
) -> Tensor:
    """Return the attention of every head, of shape (batch, rows, heads, width), contiguous, in the dtype of `query`.

    As in torch a row that sees nothing is zero.

    Args:
        query: Shape (batch, heads, rows, width).
        key: Shape (batch, heads that are shared, positions, width).
        value: Shape (batch, heads that are shared, positions, width of values).
        mask: Shape (batch or 1, 1, rows, positions), bools: what is seen; None where `is_causal` says it, or all is.
        is_causal: Whether row r sees the positions up to r, where there is no mask.
        scale: Of the scores; None: one over the root of the width.
    """
    batch, heads, rows, width = query.shape
    shared, positions = key.shape[1], key.shape[2]
    queries = query.float() * (width**-0.5 if scale is None else scale)
    queries = queries.reshape(batch, shared, heads // shared, rows, width)
    keys, values = key.float().contiguous(), value.float().contiguous()
    out = torch.empty(batch, rows, heads, value.shape[3], dtype=query.dtype, device=query.device)
    by_head = out.view(batch, rows, shared, heads // shared, value.shape[3])
    for number in range(batch):
        seen = None if mask is None else mask[number if mask.shape[0] > 1 else 0, 0]
        for start in range(0, rows, CHUNK):
            stop = min(rows, start + CHUNK)
            sight = _sight(seen, start, stop, positions, is_causal=is_causal)
            for head in range(shared):
                by_head[number, start:stop, head] = _of_chunk(
                    queries[number, head, :, start:stop], keys[number, head], values[number, head], sight
                ).transpose(0, 1)
    return out


def _sight(seen: Tensor | None, start: int, stop: int, positions: int, *, is_causal: bool) -> _Sight:
    if seen is None:
        if not is_causal:
            return _Sight(0, positions)
        last = min(positions, stop)
        return _Sight(0, last, torch.full((stop - start, max(0, last - start)), -math.inf, device="cpu").triu_(1))
    seen = seen[start:stop]
    in_sight = seen.any(0).nonzero()
    if not len(in_sight):
        return _Sight(0, 0)
    first, last = int(in_sight[0]), int(in_sight[-1]) + 1
    hidden = torch.zeros(stop - start, last - first, device="cpu").masked_fill_(~seen[:, first:last], -math.inf)
    blind = ~seen.any(1)
    return _Sight(first, last, hidden, blind if blind.any() else None)


def _of_chunk(queries: Tensor, keys: Tensor, values: Tensor, sight: _Sight) -> Tensor:
    """Return the attention of the heads that share keys and values, of shape (heads, rows, width of values)."""
    heads, rows, width = queries.shape
    count = sight.last - sight.first
    if not count:
        return queries.new_zeros(heads, rows, values.shape[1])
    keys, values = keys[sight.first : sight.last], values[sight.first : sight.last]
    scores = product_by_onednn(queries.reshape(-1, width), keys).view(heads, rows, count)
    if sight.hidden is not None:
        scores[:, :, count - sight.hidden.shape[1] :] += sight.hidden
    torch.softmax(scores, -1, out=scores)
    result = product_by_onednn(scores.view(heads * rows, -1), values.t()).view(heads, rows, -1)
    return result if sight.blind is None else result.masked_fill_(sight.blind[:, None], 0.0)
