"""Linear weights as 8-bit codes with one scale for each output, and the products by them.

Symmetric codes from -127 to 127 hold a row to within half of its scale, which is its largest number over 127. Scales are in
the dtype of what is multiplied, and codes are those of the scales as they are stored there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from ...facts import LEAST_CODED
from ...numerics.onednn_product import has_product, product_by_onednn
from ...numerics.scratch import scratch
from ..row_product import MOST_ROWS, has_code, multiply_rows

_LARGEST = 127
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CODED_AT_ONCE = 2**22  # numbers of a weight, in float32 on their way to codes: 16 MB
_CAST_AT_ONCE = 2**21  # codes that are cast for many rows: 8 MB in float32, which stays in the caches of a CPU
# torch's own product by codes reads whole vectors of bfloat16: beyond the end of a row that is no multiple of them (torch
# 2.13: `torch._weight_int8pack_mm` with 100 inputs is off by 1e36 with AVX512, or ends the process).
_VECTOR = 16
_TORCH_ROWS = 8  # of more, codes are quicker cast
_ALIGNED = 64  # bytes: of rows in bfloat16 that lie elsewhere, as parts of a wider tensor may, it ends the process


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight of shape (out_features, in_features): its codes, and the scale of each output."""

    tensor: Tensor  # int8, contiguous
    scales: Tensor  # (out_features,), in the dtype of the weight

    @classmethod
    def of(cls, weight: Tensor) -> Int8Weight | None:
        """Round a weight to codes, some rows at a time; None where it holds a number that is not finite."""
        outputs, inputs = weight.shape
        tensor = torch.empty(outputs, inputs, dtype=torch.int8, device=weight.device)
        scales = torch.empty(outputs, dtype=weight.dtype, device=weight.device)
        smallest = torch.finfo(weight.dtype).smallest_normal * torch.finfo(weight.dtype).eps
        at_once = max(1, _CODED_AT_ONCE // inputs)
        for start in range(0, outputs, at_once):
            rows = slice(start, start + at_once)
            numbers = weight[rows].detach().to(torch.float32, copy=True)
            largest = torch.linalg.vector_norm(numbers, torch.inf, dim=1)
            if not largest.isfinite().all():
                return None
            scales[rows] = (largest / _LARGEST).clamp_(min=smallest).to(weight.dtype)
            numbers /= scales[rows].float()[:, None]
            tensor[rows] = numbers.round_().clamp_(-_LARGEST, _LARGEST)
        return cls(tensor, scales)

    @property
    def out_features(self) -> int:
        """How many outputs it has."""
        return self.tensor.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.tensor.nbytes + self.scales.nbytes

    def weight(self) -> Tensor:
        """Return the weight that the codes stand for, in float32."""
        return self.tensor.float() * self.scales.float()[:, None]


def can_be_coded(weight: Tensor) -> bool:
    """Whether a weight is of a kind that codes are made for."""
    return (
        weight.dim() == 2
        and weight.dtype in _DTYPES
        and weight.device.type == "cpu"
        and weight.numel() >= LEAST_CODED
        and weight.is_contiguous()
    )


def multiply_int8(x: Tensor, codes: Int8Weight, bias: Tensor | None = None, *, wide: torch.dtype) -> Tensor:
    """Return `x @ weight.T + bias` in the dtype of `x`.

    Up to 16 rows are accumulated in float32 straight from the codes, by torch up to 8. Of more rows some codes at a time
    are cast to `wide`, and sums multiplied by their scales; in float32 by oneDNN, where torch has it.

    Args:
        x: Shape (..., in_features), in the dtype of the scales.
        codes: The weight.
        bias: Shape (out_features,), in the dtype of `x`, or None.
        wide: float32, or bfloat16 for `x` in it where its products are faster; every code is a number of either.
    """
    inputs = codes.tensor.shape[1]
    rows = x.numel() // inputs
    if 0 < rows <= MOST_ROWS:
        if has_code(torch.int8, x.dtype):
            return multiply_rows(x, codes.tensor, bias, codes.scales)
        if rows <= _TORCH_ROWS and (x.dtype is torch.float32 or inputs % _VECTOR == 0):
            return _by_torch(x, codes, bias)
    return _by_casting(x.reshape(rows, inputs), codes, bias, wide).view(*x.shape[:-1], codes.out_features)


def _by_torch(x: Tensor, codes: Int8Weight, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if not rows.is_contiguous() or rows.data_ptr() % _ALIGNED:
        rows = rows.clone(memory_format=torch.contiguous_format)
    out = torch._weight_int8pack_mm(rows, codes.tensor, codes.scales)
    if bias is not None:
        out = out + bias
    return out.view(*x.shape[:-1], codes.out_features)


def _by_casting(x: Tensor, codes: Int8Weight, bias: Tensor | None, wide: torch.dtype) -> Tensor:
    outputs, inputs = codes.tensor.shape
    out = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    x = x.to(wide).contiguous()
    product = product_by_onednn if wide is torch.float32 and x.numel() and has_product() else F.linear
    at_once = min(outputs, max(1, _CAST_AT_ONCE // inputs))
    room = scratch((at_once, inputs), wide, x.device)
    for start in range(0, outputs, at_once):
        some = slice(start, start + at_once)
        sums = product(x, room[: len(codes.tensor[some])].copy_(codes.tensor[some])).float()
        sums *= codes.scales[some].float()
        if bias is not None:
            sums += bias[some].float()
        out[:, some] = sums
    return out
