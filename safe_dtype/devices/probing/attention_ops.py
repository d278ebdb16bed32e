"""Attention as it is measured: by torch, and in chunks of its rows."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from ...facts import Dtype
from ...kernels.attention_rows import attend_rows
from .accuracy import exactly, spread
from .op_case import OpCase, Shape
from .workspace import Workspace

_TOKENS = 512
_HEAD_DIM = 64
_COMPARED_ROWS = 64  # that are computed again in float64


def _attention_operands(space: Workspace, dtype: Dtype, rows: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return query, key and value, and whether a mask is causal."""
    # Few heads keep a CPU's probe short; a GPU needs many to be busy.
    heads = 4 if space.device.type == "cpu" else 32
    query = space.inputs(dtype, 1, heads, rows, _HEAD_DIM)
    both = space.inputs(dtype, 2, 1, heads, _TOKENS, _HEAD_DIM)
    return query, both[0], both[1].flip(-2), rows == _TOKENS


def attention(space: Workspace, dtype: Dtype, rows: int, _: Shape) -> OpCase:
    """Build the case of torch's attention; of as many rows as there are positions it is causal."""
    query, key, value, causal = _attention_operands(space, dtype, rows)

    def exact(y: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (exactly(part[:, [0, -1]]) for part in (query, key, value))
        lines, positions = spread(rows, _COMPARED_ROWS), torch.arange(_TOKENS, device="cpu")
        mask = positions <= positions[:rows, None][lines] if causal else None
        return y[:, [0, -1], lines], F.scaled_dot_product_attention(q[:, :, lines], k, v, attn_mask=mask)

    return OpCase(
        call=lambda _: F.scaled_dot_product_attention(query, key, value, is_causal=causal),
        exact=exact,
        work=4.0 * rows * key.numel(),  # the masked half counts: some kernels compute it
        bytes_read=2.0 * key.numel() * dtype.itemsize,
    )


def attention_chunks(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    """Build the case of the same attention in chunks of its rows.

    Raises:
        RuntimeError: If there is no code for it on this machine.
    """
    plain = attention(space, dtype, rows, shape)
    query, key, value, causal = _attention_operands(space, dtype, rows)
    return replace(plain, call=lambda _: attend_rows(query, key, value, is_causal=causal).transpose(1, 2))


def attention_row(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
    """Build the case of the same attention in float32, from copies: as steps of one token compute it, or quicker."""
    plain = attention(space, dtype, rows, shape)
    query, key, value, causal = _attention_operands(space, dtype, rows)

    def call(_: int) -> Tensor:
        wide = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=causal)
        return wide.to(query.dtype)

    return replace(plain, call=call)
