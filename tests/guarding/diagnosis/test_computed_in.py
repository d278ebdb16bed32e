"""The dtypes that were computed in where an exception was raised, whatever its text says."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.facts import BFLOAT16, FLOAT16
from safe_dtype.guarding.diagnosis.computed_in import places_of


def test_autocast_is_seen() -> None:
    """Weights in float32 under an autocast, as accelerate puts it around a forward, are computed in its dtype."""

    @torch.autocast("cpu", dtype=torch.float16)
    def forward() -> None:
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError) as caught:
        forward()
    assert places_of(caught.value) == {(FLOAT16, "cpu")}


def test_modules_and_tensors_are_seen() -> None:
    """Those that its frames hold; float32 is none that could fail."""

    def forward(layer: torch.nn.Module, inputs: torch.Tensor) -> None:
        raise RuntimeError(f"{layer} {inputs.shape}")

    with pytest.raises(RuntimeError) as caught:
        forward(torch.nn.Linear(2, 2, dtype=torch.bfloat16), torch.ones(2))
    assert places_of(caught.value) == {(BFLOAT16, "cpu")}
