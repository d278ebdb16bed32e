"""Rows that are not finite are infinitely far off, never a silent NaN; legal masks are not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from verifying.fixed_answers import BATCH, LOGITS, saying, spoilt

from safe_dtype import measure_drift
from safe_dtype.facts import exceeds

IMAGE = LOGITS.reshape(1, 4, 8, 4)


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
