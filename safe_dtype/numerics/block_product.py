"""A layout of linear weights from which one row is multiplied as fast as memory can be read.

torch's products of one row in 16 bit reach half of the memory bandwidth of a CPU (15 of 25 GB/s on two cores): they
convert and reduce along each row of the weight. Laid out in blocks of 256 outputs, inputs first, the same product is a
weighted sum of contiguous rows, which is what `torch.embedding_bag` computes, vectorized, in float32, rounding once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .scratch import scratch

WIDTH = 256  # outputs in a block: 128 to 512 are within a tenth of each other, 1024 is half as fast
# Up to this many rows, bags are faster than casting the weight to float32 first (AVX2 and AVX512, 2 cores).
BAG_ROWS = 8
# Below this, the calls around the product cost more than it saves: 10 us, or 250 kB read.
_LEAST_ELEMENTS = 2**18
_BLOCKS_CAST = 2  # at a time; with 3072 inputs 6 MB in float32
_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight of shape (out_features, in_features) as (blocks, in_features, WIDTH), zeros beyond the last output."""

    tensor: Tensor
    out_features: int

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype | None = None) -> Blocks:
        """Lay a weight out: a second copy of it, bit for bit the same numbers unless `dtype` rounds them."""
        out_features, in_features = weight.shape
        count = -(-out_features // WIDTH)
        whole = out_features // WIDTH
        tensor = torch.empty(count, in_features, WIDTH, dtype=dtype or weight.dtype, device=weight.device)
        if whole:
            tensor[:whole] = weight[: whole * WIDTH].detach().reshape(whole, WIDTH, in_features).transpose(1, 2)
        if whole < count:
            rest = weight[whole * WIDTH :].detach()
            tensor[whole, :, : len(rest)] = rest.t()
            tensor[whole, :, len(rest) :] = 0
        return cls(tensor, out_features)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.tensor.nbytes

    def rows(self, numbers: Tensor) -> Tensor:
        """Return the rows of the weight that `numbers` name: shape (*numbers.shape, in_features)."""
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.out_features:
            raise IndexError("index out of range in self")  # torch's own words
        return self.tensor[numbers // WIDTH, :, numbers % WIDTH]

    def weight(self) -> Tensor:
        """Return the weight as it was, of shape (out_features, in_features)."""
        return self.tensor.transpose(1, 2).reshape(-1, self.tensor.shape[1])[: self.out_features].contiguous()


def can_lay_out(weight: Tensor) -> bool:
    """Whether a weight is of a kind for which blocks are made."""
    return (
        weight.dim() == 2
        and weight.dtype in (*_DTYPES, torch.float32)
        and weight.device.type == "cpu"
        and weight.numel() >= _LEAST_ELEMENTS
        and weight.is_contiguous()
    )


def product(x: Tensor, blocks: Blocks, bias: Tensor | None = None, *, wide: torch.dtype = torch.float32) -> Tensor:
    """Return `x @ weight.T + bias` in the dtype of `x`.

    Up to BAG_ROWS rows are rounded to the dtype of the blocks and accumulated in float32, more of them computed in
    `wide`; either is rounded at the end.

    Args:
        x: Shape (..., in_features).
        blocks: The weight.
        bias: Shape (out_features,), or None.
        wide: What to compute many rows in: float32, or the dtype of the blocks where its products are faster.
    """
    rows = x.numel() // x.shape[-1]
    if 0 < rows <= BAG_ROWS:
        out = _by_bags(x, rows, blocks)
        if bias is not None:
            out = out + bias
    else:
        out = _by_casting(x.reshape(rows, x.shape[-1]), blocks, bias, wide)
    return out.view(*x.shape[:-1], blocks.out_features)


def _by_bags(x: Tensor, rows: int, blocks: Blocks) -> Tensor:
    """Multiply few rows: for each block and row one bag, the weighted sum of the block's rows."""
    tensor = blocks.tensor
    count, in_features, width = tensor.shape
    indices, bounds = _bags(count, in_features, rows)
    scales = (x if x.dtype is tensor.dtype else x.to(tensor.dtype)).reshape(-1).repeat(count)
    table = tensor.view(-1, width)
    result = torch.embedding_bag(table, indices, bounds, False, 0, False, scales, True)[0]  # noqa: FBT003  (torch's order)
    if x.dtype is not tensor.dtype:
        result = result.to(x.dtype)
    if rows > 1:
        result = result.view(count, rows, width).transpose(0, 1).reshape(rows, count * width)
    if count * width == blocks.out_features:
        return result.view(rows, -1)
    return result.view(rows, count * width)[:, : blocks.out_features].contiguous()


@lru_cache(maxsize=64)
def _bags(count: int, in_features: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the table that each bag adds up, and where each bag starts, and the last one ends."""
    table = torch.arange(count * in_features, dtype=torch.int32, device="cpu").view(count, 1, in_features)
    bounds = torch.arange(0, count * rows * in_features + 1, in_features, dtype=torch.int32, device="cpu")
    return table.expand(count, rows, in_features).reshape(-1), bounds


def _by_casting(x: Tensor, blocks: Blocks, bias: Tensor | None, wide: torch.dtype) -> Tensor:
    """Multiply many rows: a few blocks cast at a time, so that they are multiplied from the cache."""
    count, in_features, width = blocks.tensor.shape
    rows = len(x)
    out = torch.empty(rows, count, width, dtype=x.dtype, device=x.device)
    wide_x = x.to(wide)
    room = scratch((_BLOCKS_CAST, in_features, width), wide, x.device)
    padded = None if bias is None else _padded(bias.to(wide), count * width).view(count, 1, width)
    for start in range(0, count, _BLOCKS_CAST):
        piece = blocks.tensor[start : start + _BLOCKS_CAST]
        if piece.dtype != wide:
            piece = room[: len(piece)].copy_(piece)
        partial = torch.matmul(wide_x, piece)  # (blocks, rows, width)
        if padded is not None:
            partial += padded[start : start + len(piece)]
        out[:, start : start + len(piece)] = partial.transpose(0, 1)
    return out.view(rows, count * width)[:, : blocks.out_features].contiguous()


def _padded(bias: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(bias, (0, length - len(bias)))
