"""Weights that are no numbers themselves."""

from __future__ import annotations

import torch
from torch import nn

from safe_dtype.guarding.diagnosis.spoiled_weights import spoiled_weights


def test_weights_that_are_numbers() -> None:
    """Nothing is said of them."""
    assert spoiled_weights(nn.Linear(4, 3).half()) is None


def test_counted() -> None:
    """Each is named, with how many of its numbers are none; codes and what is not loaded yet are not looked at."""
    model = nn.Sequential(nn.Linear(4, 3).half(), nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))
    model[0].weight.data[0, :2] = torch.inf
    model[1].bias.data[1] = torch.nan
    text = spoiled_weights(model)
    assert text is not None
    assert text.startswith("0.weight in 2 of 12 numbers, 1.bias in 1 of 2 numbers hold NaN or Inf. Next: ")


def test_many() -> None:
    """Of many the first two are named."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(4)))
    for weight in model.parameters():
        weight.data.fill_(torch.nan)
    assert "1.weight in 1 of 1 numbers and 2 more weights hold" in str(spoiled_weights(model))
