"""Models that answer the same whatever they are asked, for drifts whose figures are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

BATCH = {"input_ids": torch.arange(3, 11)[None]}
LOGITS = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))


def saying(logits: torch.Tensor) -> Callable[..., dict[str, torch.Tensor]]:
    """Return a model that says `logits`, whatever it is asked."""
    return lambda **_: {"logits": logits}


def spoilt(whole: torch.Tensor, *spots: tuple[tuple[Any, ...], float]) -> torch.Tensor:
    """Return a copy with other numbers in it."""
    copy = whole.clone()
    for where, value in spots:
        copy[where] = value
    return copy
