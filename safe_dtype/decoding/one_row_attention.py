"""Attention of one row in 16 bit: compiled where that is possible, else in a form in which torch's kernel is quick.

For each head torch's kernel for a CPU multiplies its rows by all keys and then by all values. One row in bfloat16 takes
ten times as long as two, and any number of them in float16 five times as long as in float32 with the casts. So heads that
share keys and values become rows of one head, as transformers has them for attention with a mask, and what is not quick in
its own dtype then is computed in float32: from copies of the keys and values of one layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from ..kernels.attention_row import attend, can_attend
from ..models.forwards.plain_calls import is_watched

_DTYPES = (torch.bfloat16, torch.float16)
_ATTENTION = torch._C._nn.scaled_dot_product_attention
LEAST_POSITIONS = 32  # up to there any form takes microseconds


def is_quicker_by_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether `attention_by_rows` computes this attention, and is quicker than torch's kernel as it is asked for.

    Args:
        query: Shape (batch, heads, rows, width).
        key: Shape (batch, heads that are shared, positions, width).
        value: The same.
        mask: Shape (batch, 1 or heads, rows, positions), numbers to add or bools; or None.
    """
    shape, shared = query.shape, key.shape
    return (
        type(query) is type(key) is type(value) is Tensor
        and len(shape) == 4
        and shape[2] == 1
        and query.dtype in _DTYPES
        and query.is_cpu
        and key.is_cpu
        and shared == value.shape
        and shared[2] >= LEAST_POSITIONS
        and shape[0] == shared[0]
        and shared[1] > 0
        and shape[1] % shared[1] == 0
        and shape[3] == shared[3]
        and query.dtype is key.dtype is value.dtype
        and (mask is None or (mask.dim() == 4 and (mask.shape[1] == 1 or shape[1] == shared[1])))
        and not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad))
        and is_torchs_own()
        and not is_watched()
    )


def is_torchs_own() -> bool:
    """Whether torch's attention is its own: a patch is there to be called."""
    return F.scaled_dot_product_attention is _ATTENTION


def attention_by_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Return the attention of one row a head, of shape (batch, 1, heads, width), contiguous."""
    batch, heads, _, width = query.shape
    shared = key.shape[1]
    if mask is None and can_attend(query, key, value):
        return attend(query, key, value, width**-0.5 if scale is None else scale)
    rows = query.reshape(batch, shared, heads // shared, width)
    if heads == shared or query.dtype is torch.float16:
        rows, key, value = rows.float(), key.float(), value.float()
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
    result = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    return result.reshape(batch, 1, heads, width).to(query.dtype)
