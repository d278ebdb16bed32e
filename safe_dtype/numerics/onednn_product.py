"""Products of many rows in float32 by oneDNN, for weights in any dtype.

torch multiplies in float32 by the BLAS that it was built with. MKL takes its older instructions on CPUs that Intel has not
made: on an AMD EPYC with AVX512 it reaches 95 GFLOP/s a core, and oneDNN 230. Inductor calls oneDNN for float32 through
the operator that is called here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from .cast_products import can_be_cut, piece_rows, pieces
from .onednn import is_in_use
from .scratch import scratch


def linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return `x @ weight.T + bias` in the dtype of `x`, computed in float32 and rounded once; None: it is torch's to compute.

    A weight is multiplied in pieces, so that neither a copy in float32 nor one in oneDNN's layout exists of the whole.

    Args:
        x: Shape (..., in_features), in float32 or less.
        weight: Shape (out_features, in_features), in float32 or less, contiguous or not.
        bias: Shape (out_features,), or None.
    """
    if not _can_multiply(x, weight, bias):
        return None
    flat = x.reshape(-1, x.shape[-1]).to(torch.float32).contiguous()
    wide_bias = None if bias is None else bias.to(torch.float32)
    rows = min(piece_rows(weight), weight.shape[0])
    lies_plainly = weight.dtype == torch.float32 and weight.is_contiguous()
    out = None
    if rows < weight.shape[0] or x.dtype != torch.float32:
        out = torch.empty(flat.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    room = None if lies_plainly else scratch((rows, weight.shape[1]), torch.float32, x.device)
    for start, stop in pieces(weight.shape[0], rows):
        piece = weight[start:stop]
        if room is not None:
            piece = room[: stop - start].copy_(piece)
        partial = product_by_onednn(flat, piece, None if wide_bias is None else wide_bias[start:stop])
        if out is None:
            out = partial  # the only piece
        else:
            out[:, start:stop] = partial
    assert out is not None
    return out.view(*x.shape[:-1], weight.shape[0])


def product_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias` of matrices in float32.

    Args:
        x: Shape (rows, in_features), contiguous.
        weight: Shape (out_features, in_features), contiguous, or the transpose of what is: any other takes oneDNN a
            thousand times as long.
        bias: Shape (out_features,), or None.
    """
    return _operator()(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def has_product() -> bool:
    """Whether torch was built with oneDNN, has this operator of it, and uses it."""
    return is_in_use() and _operator() is not None


@cache
def _operator() -> Any:
    operators = torch.ops.mkldnn
    return operators._linear_pointwise.default if hasattr(operators, "_linear_pointwise") else None


def _can_multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.is_cpu
        and weight.is_cpu
        and weight.dim() == 2
        and x.dim() > 0
        and x.shape[-1] == weight.shape[1]
        and x.numel() > 0
        and weight.numel() > 0
        and (bias is None or bias.shape == (weight.shape[0],))
        and can_be_cut(x, weight, bias)
        and has_product()
    )
