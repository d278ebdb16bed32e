"""What cannot be compared, what is infinitely far off, and references that are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import TINY

from safe_dtype import measure_drift
from safe_dtype.errors import (
    DegenerateReferenceError,
    IncomparableOutputsError,
    NothingToCompareError,
    UnsteadyReferenceError,
)
from safe_dtype.facts import exceeds
from safe_dtype.verifying import random_batches

BATCH = {"input_ids": torch.arange(3, 11)[None]}
LOGITS = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
IMAGE = LOGITS.reshape(1, 4, 8, 4)


def saying(logits: torch.Tensor) -> Callable[..., dict[str, torch.Tensor]]:
    """Return a model that says `logits`, whatever it is asked."""
    return lambda **_: {"logits": logits}


def spoilt(whole: torch.Tensor, *spots: tuple[tuple[Any, ...], float]) -> torch.Tensor:
    """Return a copy with other numbers in it."""
    copy = whole.clone()
    for where, value in spots:
        copy[where] = value
    return copy


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_candidate_not_finite(value: float) -> None:
    """NaN or +Inf at one position is infinitely far off and agrees with nothing; the other positions still count."""
    drift = measure_drift(saying(spoilt(LOGITS, ((0, 2, 5), value))), saying(LOGITS), [BATCH])
    assert (drift.kl_mean, drift.kl_p99, drift.max_abs, drift.rel_rms) == (math.inf,) * 4
    assert drift.top1_agreement == 7 / 8
    assert drift.perplexity_ratio == math.inf


def test_one_in_many_not_finite() -> None:
    """One position in 200 leaves the 99th percentile as it is, and makes the mean infinite: beyond any limit."""
    logits = torch.randn(1, 200, 16, generator=torch.Generator().manual_seed(0))
    batch = {"x": torch.arange(200)[None]}
    drift = measure_drift(saying(spoilt(logits, ((0, 7, 0), math.nan))), saying(logits), [batch])
    assert (drift.kl_mean, drift.kl_p99) == (math.inf, 0.0)
    assert "NaN or infinity" in str(exceeds(drift, 1e9))


def test_pixels_not_finite() -> None:
    """A pixel with NaN belongs to no class: it lowers the mIoU."""
    reference = torch.zeros(1, 2, 2, 2)
    reference[0, 0, :, 0] = reference[0, 1, :, 1] = 1
    drift = measure_drift(saying(spoilt(reference, ((0, 1, 0, 0), math.nan))), saying(reference), [{"x": IMAGE}])
    assert (drift.kl_mean, drift.top1_agreement) == (math.inf, 0.75)
    assert drift.miou == pytest.approx((1 / 2 + 1) / 2)


def test_values_not_finite() -> None:
    """A vector with infinity in it is infinitely far off, and has no direction."""
    values = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    spoiled = spoilt(values, ((0, 0), -math.inf))
    named: Any = [lambda **_: {"last_hidden_state": spoiled}, lambda **_: {"last_hidden_state": values}]
    drift = measure_drift(*named, [{"x": values}])
    assert (drift.kl_mean, drift.top1_agreement, drift.hidden_cosine) == (math.inf, 0.5, 0.5)


def test_legal_masks() -> None:
    """Logits of -inf in both are masks: no difference, and no NaN."""
    masked = spoilt(LOGITS, ((..., slice(0, 4)), -math.inf))
    drift = measure_drift(saying(masked.clone()), saying(masked), [BATCH])
    assert (drift.kl_mean, drift.max_abs, drift.rel_rms, drift.top1_agreement) == (0.0, 0.0, 0.0, 1.0)


def test_mask_of_the_candidate_alone() -> None:
    """A token that the reference allows and the candidate rules out is infinitely far off."""
    drift = measure_drift(saying(spoilt(LOGITS, ((..., 0), -math.inf))), saying(LOGITS), [BATCH])
    assert drift.kl_mean == math.inf


@pytest.mark.parametrize(
    ("candidate", "reference", "words"),
    [
        pytest.param(saying(LOGITS[..., :12]), saying(LOGITS), "(1, 8, 12)", id="vocabulary"),
        pytest.param(saying(LOGITS[:, :4]), saying(LOGITS), "(1, 4, 16)", id="positions"),
        pytest.param(saying(LOGITS[0]), saying(LOGITS), "classes", id="kind"),
        pytest.param(lambda **_: LOGITS, saying(LOGITS), "values", id="no-logits"),
        pytest.param(lambda **_: (LOGITS,), saying(LOGITS), "tuple", id="tuple"),
        pytest.param(saying(LOGITS[None, None]), saying(LOGITS), "(1, 1, 1, 8, 16)", id="dimensions"),
        pytest.param(lambda **_: {"boxes": LOGITS}, saying(LOGITS), "boxes", id="names"),
    ],
)
def test_incomparable(candidate: Any, reference: Any, words: str) -> None:
    """Outputs of different shapes or kinds are an error that names both."""
    with pytest.raises(IncomparableOutputsError) as raised:
        measure_drift(candidate, reference, [BATCH])
    assert words in str(raised.value)


def test_no_batches() -> None:
    """Without batches there is no drift."""
    with pytest.raises(NothingToCompareError, match="no batches"):
        measure_drift(saying(LOGITS), saying(LOGITS), [])


def test_everything_hidden() -> None:
    """Nor is there where every position is hidden."""
    hidden = {**BATCH, "attention_mask": torch.zeros(1, 8, dtype=torch.long)}
    with pytest.raises(NothingToCompareError, match="attention_mask"):
        measure_drift(saying(LOGITS), saying(LOGITS), [hidden])


def test_one_position_shown() -> None:
    """One position is compared; whether the reference says the same of everything, it cannot tell."""
    batch = {**BATCH, "attention_mask": torch.eye(8, dtype=torch.long)[2:3]}
    assert measure_drift(saying(LOGITS), saying(LOGITS), [batch]).positions == 1


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


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_drifts_from_itself(name: str) -> None:
    """Every kind of architecture can be compared with itself in bfloat16."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    candidate = TINY[name].make().eval()
    candidate.load_state_dict(model.state_dict())
    drift = measure_drift(candidate.bfloat16(), model, [TINY[name].inputs()])
    assert 0 < drift.kl_mean < 0.01


def test_vocabulary_smaller_than_the_ids() -> None:
    """Where ids have no logit, as in token classification, there is no perplexity."""
    batch = {"input_ids": torch.arange(90, 98)[None]}
    assert measure_drift(saying(LOGITS), saying(LOGITS), [batch]).perplexity_ratio is None


def test_random_batches() -> None:
    """Random batches are the same every time, and inside the vocabulary."""
    first, again = random_batches(50), random_batches(50)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert max(int(one["input_ids"].max()) for one in first) < 50
    assert not torch.equal(first[0]["input_ids"], random_batches(50, seed=1)[0]["input_ids"])
