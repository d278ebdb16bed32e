"""`by_onednn`: products of weights in float32 by oneDNN, as a plan has measured it to be faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from ..facts import FLOAT32
from .cast_products import cast_linear
from .compute_in import FAMILY_OF, compute_in
from .onednn_product import linear_by_onednn


class by_onednn(compute_in):  # noqa: N801  (a context, read as a phrase: with by_onednn(): ...)
    """Compute in float32 within the block as `compute_in` does, and products of weights by oneDNN, also those of float32.

    Args:
        when: As of `compute_in`.
    """

    def __init__(self, *, when: Callable[[str, int], bool] | None = None) -> None:
        super().__init__(FLOAT32, when=when)

    def _is_plain(self, func: Callable[..., Any]) -> bool:
        return FAMILY_OF[func] not in ("linear", "matmul") or func is F.bilinear

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        product = linear_by_onednn(x, weight, bias)
        return cast_linear(x, weight, bias, self.dtype) if product is None else product
