"""Frozen weights of 16 bits under trained ones in float32, as LoRA has them: computed with in float32 where training is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..facts import FLOAT32, Dtype
from ..numerics import compute_in


def has_half_base(models: Iterable[nn.Module]) -> bool:
    """Whether parameters that are not trained are 16 bits wide."""
    return any(
        not parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16)
        for model in models
        for parameter in model.parameters()
    )


def products_in(dtype: Dtype, *, has_half_base: bool) -> AbstractContextManager[Any]:
    """Return what is around a window in `dtype`: autocast knows no float32, and such weights would be multiplied as they are.

    They keep their dtype and their bytes.
    """
    return compute_in(FLOAT32) if dtype == FLOAT32 and has_half_base else nullcontext()
