"""Products by linear weights that are held in fewer bits than they were saved in, as they are measured."""

from __future__ import annotations

import torch
from torch import Tensor

from ...facts import INT8, Dtype
from ...kernels.weights.int8_weight import Int8Weight, multiply_int8
from ...kernels.weights.narrow_weight import NarrowWeight, multiply_narrow
from .accuracy import exactly, spread
from .op_case import COMPARED, COMPARED_ROWS, Build, OpCase, Shape
from .workspace import Workspace


def by_codes(wide: torch.dtype | None) -> Build:
    """Return what builds the product by 8-bit codes; many rows are computed in `wide`, None for the dtype of what is multiplied."""

    def build(space: Workspace, dtype: Dtype, rows: int, shape: Shape) -> OpCase:
        x, codes = space.inputs(dtype, rows, shape[1]), space.weights(INT8, shape)
        scales = space.inputs(dtype, shape[0]).abs()
        weights = [Int8Weight(tensor, scales) for tensor in codes]

        def exact(y: Tensor) -> tuple[Tensor, Tensor]:
            lines, columns = spread(rows, COMPARED_ROWS), spread(shape[0], COMPARED)
            weight = exactly(codes[0][columns]) * exactly(scales[columns])[:, None]
            return y[lines, columns], exactly(x[lines]) @ weight.T

        return OpCase(
            call=lambda number: multiply_int8(x, weights[number % len(weights)], wide=wide or x.dtype),
            exact=exact,
            work=2.0 * rows * shape[0] * shape[1],
            bytes_read=float(shape[0] * shape[1]),
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
