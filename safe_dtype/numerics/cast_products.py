"""Products of operands that are cast on the way: a large weight in pieces, so that no copy of the whole exists."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from .followed import is_followed
from .scratch import scratch

# Elements of a weight that are cast at a time: 8 MB in float32, which stays in the caches of a CPU until it is
# multiplied. Casting a matrix of 32,000 x 1024 whole costs three times as much, nearly all of it page faults.
_PIECE = 2**21


def cast_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return `x @ weight.T + bias`, computed and accumulated in `dtype`.

    Args:
        x: Shape (..., in_features).
        weight: Shape (out_features, in_features), in any dtype, contiguous or not.
        bias: Shape (out_features,), or None.
        dtype: The dtype of the result, too.
    """
    x = x.to(dtype)
    if not can_be_cut(x, weight, bias) or (rows := piece_rows(weight)) >= weight.shape[0]:
        return F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
    flat = x.reshape(-1, x.shape[-1])
    out = torch.empty(flat.shape[0], weight.shape[0], dtype=dtype, device=x.device)
    room = scratch((rows, weight.shape[1]), dtype, x.device)
    for start, stop in pieces(weight.shape[0], rows):
        piece = room[: stop - start].copy_(weight[start:stop])
        torch.mm(flat, piece.t(), out=out[:, start:stop])
    if bias is not None:
        out += bias.to(dtype)
    return out.view(*x.shape[:-1], weight.shape[0])


def cast_bmm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `torch.bmm(a, b)` computed in `dtype`; of a large `b` some matrices are cast at a time."""
    if a.shape[0] != b.shape[0] or not can_be_cut(a, b):
        return torch.bmm(a.to(dtype), b.to(dtype))
    if (count := max(1, _PIECE // max(1, b.shape[1] * b.shape[2]))) >= b.shape[0]:
        return torch.bmm(a.to(dtype), b.to(dtype))
    return torch.cat([torch.bmm(a[i:j].to(dtype), b[i:j].to(dtype)) for i, j in pieces(len(b), count)])


def cast_grouped_mm(x: Tensor, weight: Tensor, ends: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the products of a mixture of experts: rows up to `ends[0]` by `weight[0]`, the next by `weight[1]`, ...

    Args:
        x: Shape (rows, in_features), sorted by expert.
        weight: Shape (experts, in_features, out_features).
        ends: Shape (experts,), where each expert's rows end.
        dtype: What to compute in; the dtype of the result.
    """
    out = torch.zeros(x.shape[0], weight.shape[2], dtype=dtype, device=x.device)
    start = 0
    for number, stop in enumerate(ends.tolist()):
        if stop > start:
            out[start:stop] = cast_linear(x[start:stop], weight[number].t(), None, dtype)
        start = stop
    return out


def piece_rows(weight: Tensor) -> int:
    """Return how many rows of a weight are cast at a time."""
    return max(1, _PIECE // max(1, weight.shape[-1]))


def pieces(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where pieces of `size` begin and end."""
    return ((start, min(length, start + size)) for start in range(0, length, size))


def can_be_cut(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether pieces save memory and nobody else looks at what is computed.

    Autograd keeps what was cast, so pieces would save nothing, and neither it nor what `is_followed` names takes
    `out=`. A trace would hold the pieces.
    """
    operands = [one for one in (x, weight, bias) if one is not None]
    followed = torch.is_grad_enabled() and any(one.requires_grad for one in operands)
    return (
        not followed
        and not torch._C._is_tracing()
        and weight.dim() > 1
        and (bias is None or bias.dim() == 1)
        and all(one.layout == torch.strided for one in operands)
        and not is_followed()
    )
