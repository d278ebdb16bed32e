"""Of a window that failed nothing stays in the model, however its modules write to their buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from safe_dtype.training.kept_buffers import LARGEST_COPY, KeptBuffers


class Running(nn.Module):
    """A running mean, a count beside it, and a buffer that the first pass makes."""

    def __init__(self, write: Callable[[Running], None], size: int = 4) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(size))
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("first", None)
        self.count = 0
        self.write = write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Count a pass."""
        self.write(self)
        self.count += 1
        return x

    def state(self) -> tuple[float, int, bool, int]:
        """Return all that a pass changes."""
        return float(self.mean.sum()), int(self.passes), self.first is None, self.count


def _in_place(module: Running) -> None:
    module.mean.add_(1)
    module.passes += 1
    module.first = module.mean.clone()


def _by_another(module: Running) -> None:
    module.mean, module.passes, module.first = module.mean + 1, module.passes + 1, module.mean


def _by_data(module: Running) -> None:
    module.mean.data.add_(1)
    module.passes.data = module.passes + 1


WAYS = {"in place": _in_place, "another tensor": _by_another, "data": _by_data}


@pytest.mark.parametrize("windows", [0, 2])
@pytest.mark.parametrize("way", WAYS)
def test_as_the_window_began(way: str, windows: int) -> None:
    """Passes of earlier windows stay, and those of this one go, as often as it is run again."""
    model = nn.Sequential(Running(WAYS[way]), nn.BatchNorm1d(4))
    buffers, x = KeptBuffers([model]), torch.randn(2, 4)
    for _ in range(windows):
        buffers.keep()
        model(x)
    buffers.keep()
    before, mean = model[0].state(), model[1].running_mean.clone()
    for _ in range(2):
        model(x)
        assert model[0].state() != before
        buffers.put_back()
        assert model[0].state() == before
        assert torch.equal(model[1].running_mean, mean)
    model(x)
    assert model[0].state() != before


def test_large_buffers() -> None:
    """What is larger than is copied for every window is put back as well."""
    model = Running(lambda module: module.mean.mul_(2), LARGEST_COPY // 4 + 1)
    buffers = KeptBuffers([model])
    buffers.keep()
    model(torch.ones(1))
    buffers.put_back()
    assert model.mean.max() == 1
