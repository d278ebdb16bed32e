"""torch's own products by 4-bit codes on a CPU: the layout that they take, and what they are told beside the codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ...numerics.scratch import scratch

_PACK, _MULTIPLY = "_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu"
# Outputs in a block of its layout, whatever the registers of the CPU: blocks lie one behind the other.
BLOCK = 64
_TILES = 2  # of the layout on a GPU; on a CPU any number that is allowed there
# A scale and the zero behind it, as one number: the zero's bits are 0, and come with a cast.
_ALONE, _WITH_ZERO = (
    {torch.float32: torch.uint32, torch.bfloat16: torch.uint16, torch.float16: torch.uint16},
    {torch.float32: torch.int64, torch.bfloat16: torch.int32, torch.float16: torch.int32},
)


def has_product() -> bool:
    """Whether this torch has it."""
    return all(hasattr(torch.ops.aten, name) for name in (_PACK, _MULTIPLY))


def packed(codes: Tensor) -> Tensor:
    """Return codes from 0 to 15, of whole blocks of outputs, in torch's layout: shape (outputs, inputs // 2), in uint8."""
    made: Tensor = getattr(torch.ops.aten, _PACK)(codes.to(torch.int32), _TILES)
    return made


def product(x: Tensor, codes: Tensor, scales: Tensor, group: int) -> Tensor:
    """Return the product of rows by codes; 8 of them stands for zero.

    Args:
        x: Shape (rows, inputs), contiguous.
        codes: As `packed` returns them.
        scales: Shape (inputs // group, outputs), in the dtype of `x`.
        group: Inputs of an output that share a scale.
    """
    pairs = scratch((*scales.shape, 2), x.dtype, x.device)
    pairs.view(_WITH_ZERO[x.dtype])[..., 0].copy_(scales.view(_ALONE[x.dtype]))
    made: Tensor = getattr(torch.ops.aten, _MULTIPLY)(x, codes, group, pairs)
    return made
