"""The figures of a drift against the same figures computed plainly, in float64, with everything in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from verifying.by_the_book import Batches, check, logits_of, plain_figures, tiny

from safe_dtype import Drift, measure_drift
from safe_dtype.verifying import random_batches, record_outputs
from safe_dtype.verifying.drift import tallied


def test_language_model(qwen3: Callable[[torch.dtype], Any], text: Batches) -> None:
    """The drift of the bundled model in bfloat16 is what a plain computation over all of its logits gives."""
    reference, candidate = qwen3(torch.float32), qwen3(torch.bfloat16)
    drift = measure_drift(candidate, reference, text)
    theirs, mine = logits_of(reference, text), logits_of(candidate, text)
    check(drift, plain_figures(torch.cat(theirs).flatten(0, 1), torch.cat(mine).flatten(0, 1)))
    losses = [
        torch.cat([one[0, :-1] for one in logits]).double().log_softmax(1).gather(
            1, torch.cat([one["input_ids"][0, 1:] for one in text])[:, None]
        ).mean()
        for logits in (theirs, mine)
    ]  # fmt: skip
    assert drift.kind == "tokens"
    assert drift.perplexity_ratio == pytest.approx(math.exp(losses[0] - losses[1]), rel=1e-9)
    assert 0 < drift.kl_mean < 1e-3


def test_identical(qwen3: Callable[[torch.dtype], Any], text: Batches) -> None:
    """Equal models have no drift at all, to the last bit."""
    drift = measure_drift(
        qwen3(torch.bfloat16), qwen3(torch.bfloat16), [one | {"output_hidden_states": True} for one in text]
    )
    assert drift == Drift("tokens", 128, 0.0, 0.0, 1.0, 0.0, 0.0, perplexity_ratio=1.0, hidden_cosine=1.0)


def test_repeats(qwen3: Callable[[torch.dtype], Any], text: Batches) -> None:
    """The same inputs give the same figures, bit for bit, from a list and from a generator."""
    reference, candidate = qwen3(torch.float32), qwen3(torch.float16)
    assert measure_drift(candidate, reference, text) == measure_drift(candidate, reference, (one for one in text))


def test_modules_come_back_as_they_were() -> None:
    """A module in training mode is measured in eval mode, and is in training mode again afterwards, part by part."""
    model = tiny("qwen3").train()
    model.model.layers[0].eval()
    before = [part.training for part in model.modules()]
    assert measure_drift(model, tiny("qwen3"), random_batches(96, tokens_per_batch=8, batches=1)).max_abs == 0
    assert [part.training for part in model.modules()] == before


def test_progress() -> None:
    """The caller is told of every batch."""
    seen: list[int] = []
    batches = random_batches(96, tokens_per_batch=8, batches=3)
    measure_drift(tiny("qwen3"), tiny("qwen3"), batches, progress=seen.append)
    assert seen == [1, 2, 3]


def test_kl_of_each_position(qwen3: Callable[[torch.dtype], Any], text: Batches, tmp_path: Path) -> None:
    """In the order of the text, as many as are asked for; their mean is that of the drift."""
    recording = record_outputs(qwen3(torch.float32), text, tmp_path)
    tally = tallied(recording, qwen3(torch.bfloat16), text)
    drift, kl = tally.drift(), tally.kl(10**6)
    assert len(kl) == drift.positions
    assert sum(kl) / len(kl) == pytest.approx(drift.kl_mean)
    assert tally.kl(3) == kl[:3]
