"""What a moved weight was in its file: it was rounded when it was brought into float16 under a rescale."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.original_weights import Exponents, OriginalWeights
from .underflow import multiplied


def stored_weight(
    original: OriginalWeights, name: str, own: Tensor, dtype: torch.dtype, on_loading: Exponents
) -> Tensor | None:
    """Return what the file holds for a moved weight; None where it has changed since, or there is no file.

    Args:
        original: The files.
        name: Of the weight.
        own: Its values without the rescale, with the bits that it lost since it was loaded.
        dtype: That it was rounded to.
        on_loading: What was in force then. It may also have been rounded, or rounded anew, without any.
    """
    for exponents in (on_loading, {}) if on_loading else ({},):
        stored = original.unchanged(name, multiplied(own, exponents).to(dtype), exponents)
        if stored is not None:
            return stored
    return None
