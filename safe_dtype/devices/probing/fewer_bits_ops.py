"""Products by linear weights that are held in fewer bits than they were saved in, as they are measured.

Codes are measured with many of them at the ends of their range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...facts import COMPUTE, INT8, Coding, Dtype, coding_for, plainly
from ...kernels.row_product import has_code
from ...kernels.weights.coded_product import multiply_coded
from ...kernels.weights.coded_weight import CodedWeight, rounded
from ...kernels.weights.narrow_weight import NarrowWeight, multiply_narrow
from .accuracy import exactly, spread
from .op_case import COMPARED, COMPARED_ROWS, Build, OpCase, Shape
from .workspace import Workspace

_CODED = 64  # outputs of a weight that are rounded, a whole block of every layout
# More than half of the numbers become the largest ones, whose products leave 16 bits, where some kernels add them up.
_BEYOND = 1.6


def by_codes(codes: Dtype, wide: torch.dtype | None) -> Build:
    """Return what builds the product by codes; many rows are computed in `wide`, None for the dtype of what is multiplied."""

    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        """Build one case.

        Raises:
            RuntimeError: If there are no such products here.
        """
        # Rounding takes longer than what is measured: some outputs are rounded, and repeated.
        times = -(-shape[0] // _CODED)
        outputs = times * _CODED
        coding = coding_for(codes, outputs, shape[1]) or plainly(INT8)
        original = _numbers(space, dtype, shape[1])
        block = _block(original, coding)
        scales = torch.cat([block.scales] * times, dim=1 if block.by_torch else 0)
        copies = space.copies(block.tensor, outputs)
        weights = [CodedWeight(tensor, scales, coding, block.by_torch) for tensor in copies]
        x = space.inputs(dtype, rows, shape[1])

        def exact(y: Tensor) -> tuple[Tensor, Tensor]:
            lines, columns = spread(rows, COMPARED_ROWS), spread(_CODED, COMPARED)
            last = y[lines, outputs - _CODED :]
            return last[:, columns], exactly(x[lines]) @ exactly(rounded(original, coding)[columns]).T

        return OpCase(
            call=lambda number: multiply_coded(x, weights[number % len(weights)], wide=wide or x.dtype),
            exact=exact,
            work=2.0 * rows * outputs * shape[1],
            bytes_read=outputs * shape[1] * plainly(codes).bits / 8,
        )

    return build


def by_narrow_weights(dtype_of_weight: Dtype) -> Build:
    """Return what builds the product of float32 numbers by a weight that is held in 16 bit."""

    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        x, numbers = space.inputs(dtype, rows, shape[1]), space.weights(dtype_of_weight, shape)
        weights = [NarrowWeight(one, is_exact=True) for one in numbers]

        def exact(y: Tensor) -> tuple[Tensor, Tensor]:
            lines, columns = spread(rows, COMPARED_ROWS), spread(shape[0], COMPARED)
            return y[lines, columns], exactly(x[lines]) @ exactly(numbers[0][columns]).T

        return OpCase(
            call=lambda number: multiply_narrow(x, weights[number % len(weights)]),
            exact=exact,
            work=2.0 * rows * shape[0] * shape[1],
            bytes_read=float(shape[0] * shape[1] * dtype_of_weight.itemsize),
        )

    return build


def _numbers(space: Workspace, dtype: Dtype, inputs: int) -> Tensor:
    if dtype not in COMPUTE:
        raise RuntimeError(f"there are no products of {dtype} by codes")
    return space.inputs(dtype, _CODED, inputs).mul(_BEYOND).clamp(-1, 1)


def _block(weight: Tensor, coding: Coding) -> CodedWeight:
    block = CodedWeight.of(weight, coding)
    if block is None:
        raise RuntimeError("what is finite does not stay so")
    if coding.bits == 4 and not block.by_torch and not has_code(block.tensor.dtype, weight.dtype):
        raise RuntimeError("torch has no products by 4-bit codes here, and none are compiled: see safe-dtype[fast]")
    return block
