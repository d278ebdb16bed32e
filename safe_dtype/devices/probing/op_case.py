"""One call of an operation, ready to run, and what its result is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...facts import Dtype
from .workspace import Workspace

COMPARED = 32  # columns or rows of a result that are computed again in float64
COMPARED_ROWS = 128  # of a product

Shape = tuple[int, int]  # (out_features, in_features)


@dataclass(frozen=True, slots=True)
class OpCase:
    """One call, ready to run."""

    call: Callable[[int], Tensor]  # gets the number of the repeat, so that weights can take turns
    exact: Callable[[Tensor], tuple[Tensor, Tensor]]  # the first result -> (parts of it, those parts in float64)
    work: float  # flops, or elements where nothing is multiplied: only its growth with the rows counts
    bytes_read: float = 0.0  # weights, or the cache of attention; 0 where a rate would mean nothing


Build = Callable[[Workspace, Dtype, int, Shape], OpCase]
