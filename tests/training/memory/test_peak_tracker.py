"""What lies in large blocks at the peak of a step is told apart, for the heap of C keeps none of it."""

from __future__ import annotations

import torch
from torch import nn

from safe_dtype.training.memory import trace_step
from safe_dtype.training.memory.peak_tracker import LARGE_BYTES, MemTracker, PeakTracker


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


def test_the_peak_is_that_of_torch() -> None:
    """What is left out of torch's tracker is what nobody asks for: the peak and its kinds are the same."""
    peaks = []
    for kind in (PeakTracker, MemTracker):
        model, tracker = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)), kind()
        optimizer = torch.optim.AdamW(model.parameters())
        tracker.track_external(model, optimizer)
        with tracker:
            model(torch.ones(512, 64)).square().mean().backward()
            optimizer.step()
        peaks.append(
            {str(kind): size for kind, size in tracker.get_tracker_snapshot("peak")[torch.device("cpu")].items()}
        )
    assert peaks[0] == peaks[1]
