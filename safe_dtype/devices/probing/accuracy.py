"""How far a result is off, and how far a right one may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...facts import FLOAT32, Dtype
from ..settings import float32_precision

# A right kernel rounds once, by half an epsilon; accumulating in the narrow format costs a few more. 2e-2 is what
# Unsloth allows 16-bit kernels. Wrong ones are off by 1 and more (oneDNN's AMX convolutions: 1.18).
_ROUNDINGS = 4
_TOLERANCE_NARROW = 2e-2
_TOLERANCE_FLOAT32 = 1e-4
# float32 products may be computed in TF32 (10 bits) or, by torch.set_float32_matmul_precision, in bfloat16 (7 bits).
_INSIDE = {"medium": 2.0**-7}
_TF32 = 2.0**-10


def relative_error(result: Tensor, part: Tensor, exact: Tensor) -> float:
    """Return the largest |difference| over the largest |exact value|; infinity where `result` is not finite."""
    if not torch.isfinite(result if result.dtype.itemsize > 1 else result.float()).all():
        return math.inf
    difference = (part.cpu().double() - exact).abs().max().item()
    scale = exact.abs().max().item()
    return float(difference / scale) if scale else float(difference)


def tolerance(result: torch.dtype, dtype: Dtype, *, multiplies: bool) -> float:
    """Return the relative error up to which a kernel counts as right.

    `result` may be wider than `dtype`: float8 products come out in bfloat16, int8 ones in int32.
    """
    epsilon = torch.finfo(result).eps if result.is_floating_point else 0.0
    if dtype != FLOAT32:
        return max(_ROUNDINGS * epsilon, _TOLERANCE_NARROW)
    inside = _INSIDE.get(float32_precision(), _TF32) if multiplies else 0.0
    return max(_ROUNDINGS * inside, _TOLERANCE_FLOAT32)


def exactly(x: Tensor) -> Tensor:
    """Return the same numbers in float64, on the CPU."""
    return x.cpu().double()


def spread(length: int, count: int) -> slice:
    """Return about `count` of `length` places, evenly, the last among them: the last tile is the odd one.

    A slice, since a view needs no kernel: indexing is not there for every dtype on every device.
    """
    step = max(1, length // count)
    return slice((length - 1) % step, None, step)
