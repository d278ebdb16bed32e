"""A reference is steady, finite, and says something; else it is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import TINY
from verifying.fixed_answers import BATCH, LOGITS, saying, spoilt

from safe_dtype import measure_drift
from safe_dtype.errors import DegenerateReferenceError, UnsteadyReferenceError


def test_dropout_left_on() -> None:
    """A reference that is called with its dropout on is found out on the first batch."""
    torch.manual_seed(0)
    model = TINY["bert"].make().train()
    with pytest.raises(UnsteadyReferenceError, match="dropout"):
        measure_drift(model.eval(), lambda **batch: model.train()(**batch), [BATCH])


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        pytest.param(torch.zeros(1, 8, 16), "all equal", id="flat"),
        pytest.param(LOGITS[:, :1].mean(-1, keepdim=True).expand(1, 8, 16), "all equal", id="flat-not-zero"),
        pytest.param(LOGITS[:, :1].expand(1, 8, 16), "one and the same", id="constant"),
        pytest.param(LOGITS[:, :1] + 1e-8 * LOGITS, "one and the same", id="constant-but-rounding"),
        pytest.param(spoilt(LOGITS, ((0, 3, 3), math.nan)), "NaN or infinity", id="nan"),
        pytest.param(spoilt(LOGITS, ((0, 3, 3), math.inf)), "NaN or infinity", id="inf"),
        pytest.param(spoilt(LOGITS, ((0, 3), -math.inf)), "NaN or infinity", id="all-masked"),
    ],
)
def test_degenerate(logits: torch.Tensor, words: str) -> None:
    """A reference that says nothing is refused."""
    with pytest.raises(DegenerateReferenceError, match=words):
        measure_drift(saying(LOGITS), saying(logits), [BATCH])


def test_constant_classifier() -> None:
    """A classifier that says the same of two texts is found out at the end, though each batch has only one."""
    batches = [{"input_ids": torch.arange(start, start + 4)[None]} for start in (3, 30)]
    with pytest.raises(DegenerateReferenceError, match="one and the same"):
        measure_drift(saying(LOGITS[0, :1]), saying(LOGITS[0, :1]), batches)


@pytest.mark.parametrize(
    "batches",
    [
        pytest.param([{"input_ids": torch.full((1, 6), 7)}], id="one-token-again-and-again"),
        pytest.param([{"input_ids": torch.arange(3, 4)[None]}], id="one-position"),
        pytest.param([BATCH, BATCH], id="the-same-batch-twice"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mamba"])
def test_tiny_random_models_are_references(name: str, batches: list[Any]) -> None:
    """Tiny random models are taken, on inputs as well that are all the same."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    assert measure_drift(model, model, batches).kl_mean == 0
