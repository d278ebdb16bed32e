"""The scale of a rescaled model is raised only where ordinary text does not get worse by it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from engineered import engineered, prompts
from rescaling.gauges_by_hand import residual
from torch import Tensor

from safe_dtype import guard, report
from safe_dtype.errors import RescaleError
from safe_dtype.facts import FLOAT16, Rescale
from safe_dtype.rescaling import gauges_for, rescaled_of
from safe_dtype.rescaling.raising import raise_checked
from safe_dtype.rescaling.to_float16 import halve


def rescaled(family: str, bits: int, *, small: float = 1.0) -> Any:
    """Return a model in float16, rescaled; `small` times what the blocks write and the embedding holds."""
    model: Any = engineered(family)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight")):
                one.mul_(small)
    model = model.bfloat16()
    halve(model, Rescale(tuple((gauge, bits) for gauge in gauges_for(model).gauges if "residual" in gauge.name)))
    return model


def weights(model: Any) -> dict[str, Tensor]:
    """Return copies of the weights."""
    return {name: one.detach().clone() for name, one in model.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_raised_where_there_is_room(family: str) -> None:
    """Where weights and activations have the room, a raise costs nothing."""
    model = rescaled(family, 4)
    kept = rescaled_of(model)
    assert kept is not None
    assert raise_checked(model, kept, 3, max_drift=0.02) is None
    assert kept.raised == 3


def test_not_raised_where_weights_underflow() -> None:
    """What the weights would lose is more than bfloat16 rounds them by: nothing has changed."""
    model = rescaled("llama", 4, small=2.0**-8)
    kept, before = rescaled_of(model), weights(model)
    assert kept is not None
    with pytest.raises(RescaleError, match=r"would lose 0\.\d+ of its size"):
        raise_checked(model, kept, 6, max_drift=math.inf)
    assert kept.raised == 0
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())


def test_not_raised_where_activations_underflow() -> None:
    """Weights of which nothing is lost may write what float16 loses: that shows in the drift."""
    model: Any = engineered("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2.0**-10)
        for name, one in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):  # as coarse as that, they lose no bits
                one.copy_(one.sign() * 2.0**-10)
    model = model.bfloat16()
    halve(model, Rescale(((residual(model), 2),)))
    kept, before = rescaled_of(model), weights(model)
    assert kept is not None
    reason = raise_checked(model, kept, 12, max_drift=math.inf)
    assert reason is not None
    assert reason.startswith("ordinary text drifts with it: mean KL")
    assert kept.raised == 0
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())


def test_not_raised_beyond_the_policy() -> None:
    """The policy's limit counts too."""
    model = rescaled("qwen3", 5)
    kept = rescaled_of(model)
    assert kept is not None
    assert "the limit is 1e-12" in str(raise_checked(model, kept, 3, max_drift=1e-12))
    assert kept.raised == 0


def test_several_raises_are_measured_as_one() -> None:
    """A second raise is compared with what the model was before the first."""
    model = rescaled("llama", 4, small=2.0**-4)
    kept = rescaled_of(model)
    assert kept is not None
    for _ in range(4):
        assert raise_checked(model, kept, 1, max_drift=0.02) is None
    with pytest.raises(RescaleError, match=r"would lose|drifts"):
        raise_checked(model, kept, 4, max_drift=0.02)
    assert kept.raised == 4


def test_bits_that_were_too_few_are_taken_back() -> None:
    """The guard raises further, and ends with the bits that were enough: their number is in the last event."""
    model = guard(rescaled("llama", 1))
    with torch.inference_mode():
        model(**prompts("llama", count=1, tokens=24, seed=5)[0])
    remedies = [event.remedy for event in report(model).events]
    kept = rescaled_of(model)
    assert kept is not None
    assert remedies == [f"the exact rescaling raised by {bits} bits" for bits in range(3, kept.raised + 1, 3)]
    assert report(model).dtype == FLOAT16
