"""Linear layers scale their products in a block, and are themselves before and after."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from safe_dtype.training.half_products.trained_linear import products_scaled, takes_scaled_products


def ignore(_name: str, _numbers: Tensor) -> None:
    """Take note of nothing."""


def layer(kind: str) -> Any:
    """Return a layer with a bias that is not zero."""
    torch.manual_seed(0)
    made: Any = nn.Linear(16, 8) if kind == "Linear" else Conv1D(8, 16)
    nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("hooked", [False, True])
def test_bits_of_the_plain_layer(kind: str, hooked: bool) -> None:
    """Output and gradients, below hooks of accelerate too; the class is the plain one afterwards."""
    plain, ours = layer(kind), layer(kind)
    if hooked:
        add_hook_to_module(ours, ModelHook())
    assert takes_scaled_products(ours)
    x = torch.randn(2, 3, 16)
    with torch.autocast("cpu", torch.float16):
        with products_scaled({ours: ignore}):
            assert takes_scaled_products(ours)
            found = ours(x)
        expected = plain(x)
    assert (found.dtype, expected.dtype) == (torch.float32, torch.float16)
    found.sum().backward()
    expected.float().sum().backward()
    assert torch.equal(found, expected.float())
    assert torch.equal(ours.weight.grad, plain.weight.grad)
    assert torch.equal(ours.bias.grad, plain.bias.grad)
    assert type(ours) is type(plain)
    assert ours.__dict__.keys() - plain.__dict__.keys() == (
        {"_hf_hook", "_old_forward", "forward"} if hooked else set()
    )


def test_as_ever_outside_of_float16() -> None:
    """In float32 and bfloat16 a layer in the block computes as it does."""
    ours, x = layer("Linear"), torch.randn(3, 16)
    expected = ours(x)
    with products_scaled({ours: ignore}):
        assert torch.equal(ours(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(x).dtype == torch.bfloat16


def test_no_rows() -> None:
    """An expert that no token goes to has an output of no rows, and gradients."""
    ours = layer("Linear")
    with products_scaled({ours: ignore}), torch.autocast("cpu", torch.float16):
        ours(torch.empty(0, 16)).sum().backward()
    assert not ours.weight.grad.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant: bool) -> None:
    """Gradients are those of the layer that is not."""
    found = []
    for checkpoints in (False, True):
        ours = layer("Linear")
        x = (torch.ones(3, 16) * 1e4).requires_grad_()
        with products_scaled({ours: ignore}):
            with torch.autocast("cpu", torch.float16):
                output = checkpoint(ours, x, use_reentrant=reentrant) if checkpoints else ours(x)
            (output * 1e6).sum().backward()
        found.append((x.grad, ours.weight.grad, ours.bias.grad))
    assert all(map(torch.equal, *found))
    assert found[0][1].isfinite().all()


def test_frozen_base_of_sixteen_bits() -> None:
    """As under LoRA: its input has a gradient, and it has none."""
    ours = layer("Linear").bfloat16().requires_grad_(False)
    x = (torch.ones(3, 16) * 1e7).requires_grad_()
    with products_scaled({ours: ignore}), torch.autocast("cpu", torch.float16):
        output = ours(x)
    output.sum().backward()
    expected = copy.deepcopy(ours).float()(x.detach())
    torch.testing.assert_close(output, expected, rtol=2**-8, atol=2**-8 * float(expected.abs().max()))
    assert x.grad.isfinite().all()


def test_which_layers_are_left_alone() -> None:
    """Subclasses, layers with a forward of their own, weights that are no plain tensors, and other layers."""

    class Own(nn.Linear):
        pass

    own_forward: Any = nn.Linear(2, 2)
    own_forward.forward = lambda x: x
    quantized: Any = nn.Linear(2, 2)
    quantized.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    for module in (Own(2, 2), own_forward, quantized, nn.Conv1d(1, 1, 1), nn.Bilinear(2, 2, 2)):
        assert not takes_scaled_products(module)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
@pytest.mark.parametrize("hooked", [False, True])
def test_copies_made_in_the_block(kind: str, hooked: bool) -> None:
    """An average of the weights, or a whole model that is stored: plain layers, that can be scaled themselves."""
    ours, x = layer(kind), torch.randn(3, 16)
    if hooked:
        add_hook_to_module(ours, ModelHook())
    expected = ours(x)
    with products_scaled({ours: ignore}):
        copies = [copy.deepcopy(ours)] if hooked else [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours, 2))]
    for copied in copies:
        assert type(copied) is type(layer(kind))
        assert copied.__dict__.keys() == ours.__dict__.keys()
        assert torch.equal(copied(x), expected)
        assert takes_scaled_products(copied)


def test_one_block_in_another() -> None:
    """Two guards over one model: the layer takes note for the inner one, then for the outer one again."""
    ours, x = layer("Linear"), torch.randn(3, 16)
    notes: dict[str, list[str]] = {"outer": [], "inner": []}
    with torch.autocast("cpu", torch.float16), products_scaled({ours: lambda name, _: notes["outer"].append(name)}):
        with products_scaled({ours: lambda name, _: notes["inner"].append(name)}):
            ours(x)
        assert notes == {"outer": [], "inner": ["input", "output"]}
        ours(x)
    assert notes == {"outer": ["input", "output"], "inner": ["input", "output"]}
    assert type(ours) is nn.Linear
