"""A module tells by which power of two its numbers are multiplied."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from safe_dtype.rescaling.folding.scaled_numbers import exponent_of, numbers_of, scale_back, scale_number


def test_multiplied_and_back() -> None:
    """Exponents add up; where nothing is multiplied nothing is left behind."""
    norm = nn.LayerNorm(4, eps=1e-5)
    before = dict(norm.__dict__)
    assert exponent_of(norm, "eps") == 0
    scale_number(norm, "eps", -12)
    scale_number(norm, "eps", -6)
    assert (norm.eps, exponent_of(norm, "eps")) == (1e-5 * 2.0**-18, -18)
    copied = copy.deepcopy(norm)
    scale_number(norm, "eps", 18)
    assert (norm.eps, exponent_of(norm, "eps")) == (1e-5, 0)
    assert norm.__dict__.keys() == before.keys()
    assert exponent_of(copied, "eps") == -18


def with_buffers(scale: torch.Tensor) -> nn.Module:
    """Return a module with a scale that is not saved, and other buffers that are no such number."""
    module = nn.Module()
    module.register_buffer("scale", scale, persistent=False)
    module.register_buffer("saved", torch.tensor(1.0))
    module.register_buffer("several", torch.ones(2), persistent=False)
    module.register_buffer("is_full", torch.tensor(data=True), persistent=False)
    return module


@pytest.mark.parametrize(
    "scale", [torch.tensor(8.0), torch.tensor(12), torch.tensor(8.0, dtype=torch.bfloat16)], ids=str
)
def test_buffer_of_one_number(scale: torch.Tensor) -> None:
    """A buffer is multiplied as a float is, also one of whole numbers, and stays a buffer that is not saved."""
    module = with_buffers(scale)
    assert list(numbers_of(module)) == ["scale"]
    scale_number(module, "scale", -5)
    assert (float(module.scale), exponent_of(module, "scale")) == (float(scale) / 32, -5)
    assert "scale" not in module.state_dict()
    state = dict(copy.deepcopy(module).__dict__)
    scale_back(state)
    assert float(state["_buffers"]["scale"]) == float(scale)
    scale_number(module, "scale", 5)
    assert (float(module.scale), exponent_of(module, "scale")) == (float(scale), 0)
