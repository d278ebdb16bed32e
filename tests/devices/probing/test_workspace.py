"""Random numbers that no kernel can profit from."""

from __future__ import annotations

import torch

from safe_dtype.devices.probing.workspace import Workspace
from safe_dtype.facts import BFLOAT16, FLOAT32


def test_large_heads_are_cut() -> None:
    """Of an output head, as many rows are taken as leave several copies beyond the cache; in_features stay."""
    space = Workspace(torch.device("cpu"))
    rows, width = space.widest(FLOAT32, (151_936, 1024))
    assert width == 1024
    assert rows < 151_936
    assert len(space.weights(FLOAT32, (rows, width))) >= 4


def test_no_weight_repeats_another() -> None:
    """Copies of a weight, its rows and the inputs are all different numbers."""
    space = Workspace(torch.device("cpu"))
    first, second, *_ = space.weights(BFLOAT16, (256, 1024))
    assert not torch.equal(first, second)
    assert len(torch.unique(first.float(), dim=0)) == 256
    assert not torch.equal(first[:1] * 8, space.inputs(BFLOAT16, 1, 1024))
