"""Percentiles: exact where all samples are kept, near where they are counted in bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from safe_dtype.verifying.spread import BinnedSamples, EverySample


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 1000, 1001])
def test_both_agree(count: int) -> None:
    """Both give the sample that 99 % do not exceed; the bins one at most 0.05 % above it."""
    samples = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) ** 8
    exact, binned = EverySample(), BinnedSamples()
    for one in (exact, binned):
        one.add(samples[: count // 2])
        one.add(samples[count // 2 :])
    expected = np.quantile(samples.numpy(), 0.99, method="inverted_cdf")
    assert exact.p99() == expected
    assert expected * (1 - 1e-7) <= binned.p99() <= expected * 1.0005
    assert exact.mean() == pytest.approx(binned.mean())


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_ends(value: float) -> None:
    """Zero stays zero, and infinity infinity."""
    for one in (EverySample(), BinnedSamples()):
        one.add(torch.full((5,), value, dtype=torch.float64))
        assert (one.mean(), one.p99()) == (value, value)
