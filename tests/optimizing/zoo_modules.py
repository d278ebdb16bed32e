"""The plain modules of the zoo, and their batches."""

from __future__ import annotations

import torch
from optimizing.zoo_inputs import Inputs, seeded
from torch import nn


class Branch(nn.Module):
    """Goes one way or the other, by the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return shape (batch, length, 16)."""
        y = self.linear(x)
        if y.sum() > 0:
            return y.relu()
        return y - 1


class Patches(nn.Module):
    """The convolution that one CPU kernel computes wrongly in bfloat16: 16 channels, 4 x 4, stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(16, 16, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take shape (batch, 16, height, width) and return (batch, 16, height / 4, width / 4)."""
        return self.project(x)


def plain(seed: int, batch: int, length: int) -> Inputs:
    """Return x of shape (batch, length, 16)."""
    return {"x": torch.randn(batch, length, 16, generator=seeded(seed))}


def channels(seed: int, batch: int, size: int) -> Inputs:
    """Return x of shape (batch, 16, 32 size, 32 size)."""
    return {"x": torch.randn(batch, 16, 32 * size, 32 * size, generator=seeded(seed))}
