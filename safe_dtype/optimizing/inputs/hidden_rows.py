"""Masks that hide a row whole. Attention that has nothing to look at answers otherwise in each of its implementations.

Those of transformers agree on every mask that shows something. Of a row that is hidden whole, `sdpa` answers zeros and
`eager` the mean of what is hidden: with the one in place of the other, which captures where the first does not, an
output of SAM 3 was 5 % off, measured.
"""

from __future__ import annotations

import torch


def hides_a_row(name: str, tensor: torch.Tensor) -> bool | None:
    """Return whether an input is a mask that hides at least one row, or one image, whole; None where it is no mask.

    Args:
        name: Of the input.
        tensor: Shape (batch, length), (batch, height, width), or with the positions that are shown in its last dimension.
    """
    if not name.endswith("mask") or tensor.is_floating_point() or tensor.dim() < 2:
        return None
    rows = tensor.flatten(1) if tensor.dim() == 3 else tensor
    return not bool((rows != 0).any(-1).all())
