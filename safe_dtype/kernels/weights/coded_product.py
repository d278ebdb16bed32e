"""The products by weights that are held as codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from ...numerics.onednn_product import has_product, product_by_onednn
from ...numerics.scratch import scratch
from ..row_product import MOST_ROWS, has_code, multiply_rows
from . import int4_by_torch
from .coded_weight import CodedWeight

_CAST_AT_ONCE = 2**21  # codes that are cast for many rows: 8 MB in float32, which stays in the caches of a CPU
# torch's own product by 8-bit codes reads whole vectors of bfloat16: beyond the end of a row that is no multiple of them (torch
# 2.13: `torch._weight_int8pack_mm` with 100 inputs is off by 1e36 with AVX512, or ends the process).
_VECTOR = 16
_TORCH_ROWS = 8  # of more, 8-bit codes are quicker cast
_ALIGNED = 64  # bytes: of rows in bfloat16 that lie elsewhere, as parts of a wider tensor may, it ends the process


def multiply_coded(x: Tensor, codes: CodedWeight, bias: Tensor | None = None, *, wide: torch.dtype) -> Tensor:
    """Return `x @ weight.T + bias` in the dtype of `x`.

    Up to 16 rows are accumulated in float32 straight from the codes, by torch up to 8; codes that lie as torch takes them at
    any number of rows. Of more rows some codes at a time are cast to `wide`, and what has one scale for an output multiplied
    by it in the end; in float32 by oneDNN, where torch has it.

    Args:
        x: Shape (..., in_features), in the dtype of the scales.
        codes: The weight.
        bias: Shape (out_features,), in the dtype of `x`, or None.
        wide: float32, or bfloat16 for `x` in it where its products are faster. Every code of 8 bits is a number of either;
            those of 4 bits are rounded in it together with their scales.
    """
    inputs = codes.in_features
    rows = x.numel() // inputs
    if 0 < rows <= MOST_ROWS and not codes.by_torch and has_code(codes.tensor.dtype, x.dtype):
        return multiply_rows(x, codes.tensor, bias, codes.scales)
    if _has_torchs_product(x, codes, rows):
        return _by_torch(x, codes, bias)
    return _by_casting(x.reshape(rows, inputs), codes, bias, wide).view(*x.shape[:-1], codes.out_features)


def _has_torchs_product(x: Tensor, codes: CodedWeight, rows: int) -> bool:
    if codes.coding.group is not None:
        return codes.by_torch
    return 0 < rows <= _TORCH_ROWS and (x.dtype is torch.float32 or codes.in_features % _VECTOR == 0)


def _by_torch(x: Tensor, codes: CodedWeight, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if not rows.is_contiguous() or rows.data_ptr() % _ALIGNED:
        rows = rows.clone(memory_format=torch.contiguous_format)
    if codes.coding.group is None:
        out = torch._weight_int8pack_mm(rows, codes.tensor, codes.scales)
    else:
        out = int4_by_torch.product(rows, codes.tensor, codes.scales, codes.coding.group)
    if bias is not None:
        out = out + bias
    return out.view(*x.shape[:-1], codes.out_features)


def _by_casting(x: Tensor, codes: CodedWeight, bias: Tensor | None, wide: torch.dtype) -> Tensor:
    outputs, inputs = codes.out_features, codes.in_features
    out = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    x = x.to(wide).contiguous()
    product = product_by_onednn if wide is torch.float32 and x.numel() and has_product() else F.linear
    at_once = min(outputs, max(1, _CAST_AT_ONCE // inputs))
    room = scratch((at_once, inputs), wide, x.device)
    for start in range(0, outputs, at_once):
        some = slice(start, start + at_once)
        sums = product(x, codes.cast(some, room[: len(codes.tensor[some])])).float()
        if codes.coding.group is None:
            sums *= codes.scales[some].float()
        if bias is not None:
            sums += bias[some].float()
        out[:, some] = sums
    return out
