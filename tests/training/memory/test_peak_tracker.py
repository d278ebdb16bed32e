"""What lies in large blocks at the peak of a step is told apart, for the heap of C keeps none of it."""

from __future__ import annotations

import torch
from torch import nn

from safe_dtype.training.memory import trace_step
from safe_dtype.training.memory.peak_tracker import LARGE_BYTES


def test_large_blocks() -> None:
    """The weight, both of its moments and its gradient are in large blocks, all else is not."""
    model = nn.Sequential(nn.Linear(8, 3000, bias=False), nn.Linear(3000, 3000, bias=False), nn.Linear(3000, 8))
    size = 4 * 3000 * 3000
    assert size >= LARGE_BYTES
    step = trace_step(model, {0: torch.ones(4, 8)})
    kinds, large = dict(step.kinds), dict(step.large)
    assert (large["parameters"], large["gradients"]) == (size, size)
    assert large["optimizer"] >= 2 * size  # and what a step computes in between
    assert large["optimizer"] % size == 0
    assert sum(large.values()) < step.peak_bytes == sum(kinds.values())


def test_small_blocks() -> None:
    """A model of small weights has none."""
    assert trace_step(nn.Linear(64, 64), {0: torch.ones(4, 64)}).large == ()
