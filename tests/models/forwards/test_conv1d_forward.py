"""GPT-2's linear modules multiply few rows by compiled code, and nothing else about a model changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.forwards.compiled import counted
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from safe_dtype.models.block_layout import take_back
from safe_dtype.models.forwards import conv1d_forward
from safe_dtype.models.forwards.conv1d_forward import compile_columns

pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")

BF16 = torch.bfloat16


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is multiplied by compiled code from now on."""
    return counted(monkeypatch, conv1d_forward, "multiply_columns")


def module_of(dtype: torch.dtype = BF16) -> Conv1D:
    """Return a seeded module that is large enough, compiled for up to 8 rows."""
    torch.manual_seed(0)
    module = Conv1D(600, 512).to(dtype).requires_grad_(False)
    module.bias.copy_(torch.randn(600))
    assert compile_columns(module, dtype, 8) == 1
    return module


def plainly(module: Conv1D, x: Tensor) -> Tensor:
    """Return what its class computes."""
    return type(module).forward(module, x)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
def test_one_module(dtype: torch.dtype, called: list[Any]) -> None:
    """Up to its number of rows a module is compiled, in any shape; beyond it the bits are torch's."""
    module = module_of(dtype)
    for shape in ((1, 512), (8, 512), (2, 2, 2, 512)):
        x = torch.randn(shape).to(dtype)
        right = x.double() @ module.weight.double() + module.bias.double()
        result = module(x)
        assert result.shape == (*shape[:-1], 600)
        assert (result - right).abs().max() <= torch.finfo(dtype).eps * right.abs().max() + 1e-5
    assert len(called) == 3
    x = torch.randn(9, 512).to(dtype)
    assert torch.equal(module(x), plainly(module, x))
    assert len(called) == 3


def test_a_model(called: list[Any]) -> None:
    """A GPT-2 goes on with plain's tokens; undone, every bit is plain's."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=600, n_embd=512, n_layer=2, n_head=8, n_positions=64)
    model = GPT2LMHeadModel(config).to(BF16).eval().requires_grad_(False)
    ids, options = torch.arange(3, 13)[None], {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    before, logits = model.generate(ids, **options), model(ids[:, :3]).logits
    assert compile_columns(model, BF16, 8) == 8
    assert model.generate(ids, **options).tolist() == before.tolist()
    assert called
    assert take_back(model) == 8
    assert torch.equal(model(ids[:, :3]).logits, logits)


def exchanged(module: Conv1D) -> None:
    """Give it another class."""
    module.__class__ = type("Doubled", (Conv1D,), {"forward": lambda self, x: 2 * Conv1D.forward(self, x)})


def written_to(module: Conv1D) -> None:
    """Write to its weight."""
    module.weight.data[0] = 0


def in_other_strides(module: Conv1D) -> None:
    """Have its weight lie in another order."""
    module.weight = nn.Parameter(module.weight.t().contiguous().t(), requires_grad=False)


@pytest.mark.parametrize("change", [exchanged, written_to, in_other_strides])
def test_what_users_do(change: Callable[[Conv1D], None]) -> None:
    """Another class, other numbers and other strides count at once."""
    module, x = module_of(), torch.randn(2, 512).to(BF16)
    change(module)
    wanted = plainly(module, x)
    assert (module(x) - wanted).abs().max() <= 2**-7 * wanted.abs().max()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda module, x: copy.deepcopy(module)(x), id="deepcopy"),
        pytest.param(lambda module, x: pickle.loads(pickle.dumps(module))(x), id="pickle"),
        pytest.param(lambda module, x: torch.vmap(module)(x), id="vmap"),
        pytest.param(lambda module, x: module(torch._neg_view(-x)), id="negated"),
        pytest.param(lambda module, x: module(x.requires_grad_()).detach(), id="gradients"),
    ],
)
def test_where_it_is_torchs(call: Callable[[Any, Tensor], Tensor], called: list[Any]) -> None:
    """Copies, transforms, gradients, and numbers that lie with the other sign are torch's."""
    module, x = module_of(), torch.randn(2, 512).to(BF16)
    result = call(module, x)
    wanted = plainly(module, x)
    assert (result - wanted).abs().max() <= 2**-7 * wanted.abs().max()
    assert not called


def test_what_torch_refuses() -> None:
    """Rows of another width are refused in torch's words."""
    with pytest.raises(RuntimeError, match="shape"):
        module_of()(torch.randn(2, 500).to(BF16))
