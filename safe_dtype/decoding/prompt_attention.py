"""Which attention of a prompt may be computed by compiled code: nobody would see another difference than its speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..kernels.attention_rows import can_attend_rows
from ..models.forwards.plain_calls import is_plain, is_watched, needs_gradient

_ATTENTION = torch._C._nn.scaled_dot_product_attention
# Rows are computed as many at a time as a tile is wide: of fewer, torch's kernel takes no longer.
_LEAST_ROWS = 32


def can_be_in_chunks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether `attend_rows` computes this attention.

    Args:
        query: Shape (batch, heads, rows, width).
        key: Shape (batch, heads that are shared, positions, width).
        value: The same, its width may be another.
        mask: Shape (batch, 1 or heads, rows, positions), numbers to add or bools; or None.
    """
    return (
        all(is_plain(one) and one.dim() == 4 and one.dtype is query.dtype for one in (query, key, value))
        and query.shape[2] >= _LEAST_ROWS
        and query.shape[0] == key.shape[0]
        and key.shape[1] > 0
        and query.shape[1] % key.shape[1] == 0
        and query.shape[3] == key.shape[3]
        and key.shape[:3] == value.shape[:3]
        and (mask is None or _is_of(mask, query, key))
        and not needs_gradient(query, key, value)
        and not torch.is_autocast_enabled("cpu")
        and F.scaled_dot_product_attention is _ATTENTION  # a patch is there to be called
        and not is_watched()
        and can_attend_rows(query.dtype)
    )


def _is_of(mask: Tensor, query: Tensor, key: Tensor) -> bool:
    return (
        is_plain(mask)
        and mask.dtype is torch.bool
        and mask.dim() == 4
        and mask.shape[0] in (1, query.shape[0])
        and mask.shape[1] == 1
        and mask.shape[2:] == (query.shape[2], key.shape[2])
    )
