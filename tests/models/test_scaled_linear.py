"""A scaled linear layer takes numbers of any size, and multiplies small ones."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from safe_dtype.models.scaled_linear import can_be_scaled, scale_by_input, scale_no_more


def layer(kind: str, *, bias: bool = True) -> Any:
    """Return a layer in float16."""
    torch.manual_seed(0)
    made: Any = nn.Linear(16, 8, bias=bias) if kind == "Linear" else Conv1D(8, 16)
    return made.half()


def truth(module: Any, x: Tensor) -> Tensor:
    """Return what the layer gives in float32."""
    found: Tensor = copy.deepcopy(module).float()(x.float()).detach()
    return found


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("size", [1.0, 6e4, 1e9])
def test_right_for_numbers_of_any_size(kind: str, size: float) -> None:
    """Rows of very different sizes are each as exact as float16 is, in float32 where their outputs need that."""
    module = layer(kind)
    x = torch.randn(2, 5, 16) * size
    x[0, 0] *= 1e-3
    x[1, 1] = 0
    expected = truth(module, x)
    scale_by_input(module, returns_float32=True)
    with torch.no_grad():
        found = module(x)
    assert found.dtype == torch.float32
    error = (found - expected).norm(dim=-1) / (expected.norm(dim=-1) + 1e-30)
    assert float(error.max()) < 2**-9


def test_small_numbers_beside_a_huge_one() -> None:
    """They are not lost: a row is scaled no further than it has to be."""
    module = layer("Linear")
    with torch.no_grad():
        module.weight[:, 0] = 0
    x = torch.full((1, 16), 0.1)
    x[0, 0] = 1e5
    expected = truth(module, x)
    scale_by_input(module, returns_float32=False)
    torch.testing.assert_close(module(x).float(), expected, rtol=2**-9, atol=1e-3)


def test_output_in_the_dtype_of_the_weights() -> None:
    """A layer that takes float32 may hand on float16, and weights and outputs beyond its range show."""
    module = layer("Linear")
    scale_by_input(module, returns_float32=False)
    with torch.no_grad():
        assert module(torch.full((1, 16), 1e5)).dtype == torch.float16
        assert not module(torch.full((1, 16), 1e9)).isfinite().all()
        assert not module(torch.tensor([[float("inf")] * 16])).isfinite().any()


def test_taken_back() -> None:
    """It computes what it did, bit for bit; the weights were never touched."""
    module, x = layer("Linear", bias=False), torch.randn(3, 16).half()
    before, kept = module(x), dict(module.__dict__)
    weight = module.weight
    scale_by_input(module, returns_float32=True)
    assert module.weight is weight
    copied = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert copied(x).dtype == torch.float32
    scale_no_more(module)
    assert type(module) is nn.Linear
    assert module.__dict__.keys() == kept.keys()
    assert torch.equal(module(x), before)


def test_which_layers() -> None:
    """A layer with a forward of its own, or of another class, is left alone."""

    class Own(nn.Linear):
        pass

    own_forward = layer("Linear")
    own_forward.forward = own_forward.forward
    assert can_be_scaled(layer("Linear"))
    assert not can_be_scaled(own_forward)
    assert not can_be_scaled(Own(2, 2))
    assert not can_be_scaled(nn.Conv1d(1, 1, 1))


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_below_a_hook_of_accelerate(kind: str) -> None:
    """Over several devices every layer has one, which calls the forward that it has found."""
    module, x = layer(kind, bias=False), torch.randn(3, 16).half()
    before = module(x)
    add_hook_to_module(module, ModelHook())
    assert can_be_scaled(module)
    scale_by_input(module, returns_float32=True)
    assert module(x * 60).dtype == torch.float32
    assert module(x.float() * 6e7).isfinite().all()
    scale_no_more(module)
    assert torch.equal(module(x), before)
    remove_hook_from_module(module)
    assert torch.equal(module(x), before)
