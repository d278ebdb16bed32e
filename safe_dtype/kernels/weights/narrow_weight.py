"""Linear weights of a float32 model in 16 bit, and the products by them: numbers are widened as they are read.

Many checkpoints in float32 are bfloat16 or float16 numbers that somebody has cast up. These formats hold them exactly, in
half of the memory, and of a token half of the bytes are read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from ...facts import LEAST_NARROWED
from ...numerics.cast_products import cast_linear, pieces
from ...numerics.onednn_product import linear_by_onednn
from ..row_product import MOST_ROWS, has_code, multiply_rows

_AT_ONCE = 2**21  # numbers that are narrowed and compared at a time, which stay in the caches of a CPU


@dataclass(frozen=True, slots=True)
class NarrowWeight:
    """A weight of shape (out_features, in_features), and whether it has the numbers of the float32 one or is rounded."""

    tensor: Tensor  # bfloat16 or float16, contiguous
    is_exact: bool

    @classmethod
    def exactly(cls, weight: Tensor, dtype: torch.dtype) -> NarrowWeight | None:
        """Narrow a float32 weight; None where one of its numbers is none of `dtype`, bit for bit."""
        tensor = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        for start, stop in _rows_at_once(weight):
            numbers = weight[start:stop].detach()
            widened = tensor[start:stop].copy_(numbers).float()
            # Bits and not numbers, so that minus zero stays what it is and NaN equals itself.
            if not torch.equal(widened.view(torch.int32), numbers.view(torch.int32)):
                return None
        return cls(tensor, is_exact=True)

    @classmethod
    def rounded(cls, weight: Tensor, dtype: torch.dtype) -> NarrowWeight | None:
        """Round a float32 weight to `dtype`; None where that leaves its range."""
        tensor = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        for start, stop in _rows_at_once(weight):
            if not tensor[start:stop].copy_(weight[start:stop].detach()).isfinite().all():
                return None
        return cls(tensor, is_exact=False)

    @property
    def out_features(self) -> int:
        """How many outputs it has."""
        return self.tensor.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return self.tensor.nbytes

    def rows(self, numbers: Tensor) -> Tensor:
        """Return the rows that `numbers` name, in float32: shape (*numbers.shape, in_features)."""
        return F.embedding(numbers, self.tensor).float()


def can_be_narrowed(weight: Tensor) -> bool:
    """Whether a weight is of a kind that is held in 16 bit."""
    return (
        weight.dim() == 2
        and weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and weight.numel() >= LEAST_NARROWED
        and weight.is_contiguous()
    )


def multiply_narrow(x: Tensor, weight: NarrowWeight, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias` in float32, with sums in float32.

    Up to 16 rows are multiplied straight from the 16-bit numbers, where code for that is compiled. Of more rows some of
    the weight at a time is cast, and multiplied by oneDNN where torch has it.

    Args:
        x: Shape (..., in_features), in float32.
        weight: What it is multiplied by.
        bias: Shape (out_features,), in float32, contiguous; or None.
    """
    rows = x.numel() // x.shape[-1]
    if 0 < rows <= MOST_ROWS and has_code(weight.tensor.dtype, x.dtype):
        return multiply_rows(x, weight.tensor, bias)
    product = linear_by_onednn(x, weight.tensor, bias)
    return cast_linear(x, weight.tensor, bias, torch.float32) if product is None else product


def _rows_at_once(weight: Tensor) -> list[tuple[int, int]]:
    return list(pieces(len(weight), max(1, _AT_ONCE // max(1, weight.shape[1]))))
