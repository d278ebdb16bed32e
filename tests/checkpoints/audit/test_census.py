"""What is said of many numbers from their counts: sums, room to scale, quantiles."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoints.audit.spreads import CHUNK, SPREADS, audited, counted, fates, powers


@pytest.mark.parametrize("name", ["usual", "tiny", "usual-then-small", "usual-then-large", "half-zero", "zeros"])
def test_bits_down(name: str, tmp_path: Path) -> None:
    """The room below is what scaling by every power of two, one after the other, gives; exact for one in a thousand."""
    numbers = SPREADS[name]
    census = audited(tmp_path, {name: numbers})[name]
    sizes = numbers.double().abs()

    def too_many(shift: int) -> bool:
        scaled = sizes * 2.0**-shift
        return int(((scaled > 0) & (scaled < 2.0**-17)).sum()) > 0.001 * numbers.numel()

    found = census.bits_down(0.001)
    if found is None:
        assert not too_many(1000)
    else:
        assert not too_many(found)
        assert too_many(found + 1)


@pytest.mark.parametrize("largest", [1.0, 65504.0, 65519.99, 65520.0, 65536.0, 3e38, 1e-40, 0.9999])
def test_bits_up(largest: float, tmp_path: Path) -> None:
    """By 2**bits_up the largest weight stays finite in torch's conversion, and by one more it does not."""
    numbers = torch.tensor([largest, 1e-3 * largest])
    census = audited(tmp_path, {"w": numbers})["w"]
    up = census.bits_up
    assert up is not None
    exact = numbers[0].double()
    assert (exact * 2.0**up).float().half().isfinite()
    assert (exact * 2.0 ** (up + 1)).float().half().isinf()


def test_quantiles(tmp_path: Path) -> None:
    """The bulk of the weights is where torch finds it, to a third of a power of two."""
    numbers = SPREADS["usual"]
    census = audited(tmp_path, {"w": numbers})["w"]
    for share in (0.01, 0.5, 0.99):
        truth = math.log2(numbers[:CHUNK].double().abs().quantile(share))
        assert census.quantile(share) == pytest.approx(truth, abs=1 / 3)


def test_sums(tmp_path: Path) -> None:
    """The census of two tensors together is the sum of theirs."""
    both = {"a": SPREADS["tiny"], "b": SPREADS["huge"]}
    found = audited(tmp_path, both)
    whole = torch.cat([*both.values()])
    total = found["a"] + found["b"]
    assert counted(total) == fates(whole)
    assert sum(n for _, n in total.exponents) == sum(powers(whole).values())
