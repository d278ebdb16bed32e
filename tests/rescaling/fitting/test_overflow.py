"""An overflow that no result shows is told from one that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safe_dtype.rescaling.fitting.overflow import shows, without_room
from safe_dtype.rescaling.fitting.peaks import Peak, record_peaks

BF16 = torch.bfloat16
END = 65504.0


class Headed(nn.Module):
    """A head that reaches beyond float16, and what becomes of its logits."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3, bias=False).to(BF16)
        self.head.weight.data = torch.tensor([[2e5, 0, 0, 0], [0, -2e5, 0, 0], [0, 0, 1, 0]], dtype=BF16)
        self.after = after

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Return the logits, and something that is no tensor."""
        return {"logits": self.after(self.head(x)), "cache": None}


@pytest.mark.parametrize(
    ("after", "is_seen"),
    [
        pytest.param(lambda one: torch.tanh(one / 30.0) * 30.0, False, id="a-soft-cap"),
        pytest.param(lambda one: one.clamp(-100, 100), False, id="clamped"),
        pytest.param(lambda one: one, True, id="as-it-is"),
        pytest.param(lambda one: one / 1e4, True, id="divided"),
        pytest.param(lambda one: torch.tanh(one / 1e6), True, id="a-cap-that-is-far"),
        pytest.param(lambda one: (one - one.amax(-1, keepdim=True)).exp(), True, id="not-finite"),
    ],
)
def test_shows(after: Callable[[Tensor], Tensor], is_seen: bool) -> None:
    """Infinity in place of large numbers: only what caps them gives the same bits."""
    model = Headed(after)
    batches = [{"x": torch.ones(2, 4, dtype=BF16)}]
    peaks = record_peaks(model, batches, BF16).beyond(END)
    assert {peak.module for peak in peaks} >= {"head"}
    heads = [peak for peak in peaks if peak.module == "head"]
    assert shows(model, batches, BF16, heads, END) is is_seen


def test_only_what_is_asked_for() -> None:
    """Other operations stay what they are, and the model stays without hooks."""
    model = Headed(lambda one: one)
    other = [Peak("", "aten.mm.default", 2e5)]
    assert shows(model, [{"x": torch.ones(2, 4, dtype=BF16)}], BF16, other, END) is False
    assert not model.head._forward_hooks
    assert not model.head._forward_pre_hooks


def test_room_that_is_missing_where_it_shows() -> None:
    """An operation near the end is named where results depend on it, and none where there is room or nothing depends on it."""
    batches = [{"x": torch.eye(4, dtype=BF16)}]
    plain, capped = Headed(lambda one: one), Headed(lambda one: one.clamp(-100, 100))
    for model, limit, module in ((plain, END, "head"), (plain, 1e6, None), (capped, END, None)):
        found = without_room(model, batches, BF16, record_peaks(model, batches, BF16), limit)
        assert (found.module if found else None) == module
