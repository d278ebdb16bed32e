"""Where a failure may come from beside a module's own call: the root's forward, functions, the code of `generate`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from guarding.generators import tiny
from torch import nn
from transformers import LogitsProcessorList

from safe_dtype import guard, report
from safe_dtype.models.recast import recast

BF16, FP32 = torch.bfloat16, torch.float32
IDS = torch.arange(3, 9)[None]


def narrow_is_refused(hidden: torch.Tensor) -> torch.Tensor:
    """Refuse 16 bit, as a function of a model's file may."""
    if hidden.dtype != FP32:
        raise KeyError(hidden.dtype)
    return hidden


class Root(nn.Module):
    """A model that calls a function between its modules, and one module many times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, 8) to the same shape."""
        for _ in range(3):
            hidden = self.layer(hidden)
        return narrow_is_refused(hidden)


@torch.no_grad()
def test_a_function_in_the_root() -> None:
    """What a plain function raises in the root's own forward is cured."""
    torch.manual_seed(0)
    model, given = Root().eval().to(BF16), torch.randn(2, 8).to(BF16)
    plain = copy.deepcopy(model).float()
    assert torch.equal(guard(model)(given), plain(given.float()))


def with_own_generate(error: Exception, *, always: bool) -> Any:
    """Return a model whose `generate` calls a module before any step, as remote code does, and that fails in it."""
    model = tiny()

    class Own(type(model)):  # type: ignore[misc]
        def generate(self, ids: torch.Tensor, **options: Any) -> Any:
            self.model.layers[0].mlp(self.model.embed_tokens(ids))
            return super().generate(ids, **options)

    def fail(module: nn.Module, args: Any) -> None:
        if always or args[0].dtype != FP32:
            raise error

    model.__class__ = Own
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(fail)
    return model


def test_own_generate_is_cured() -> None:
    """A module that `generate` calls by itself is run alone, and the generation begins anew."""
    model, plain = guard(with_own_generate(RuntimeError(), always=False)), tiny()
    recast(plain, {BF16}, FP32)
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), plain.generate(IDS, **options))


@pytest.mark.parametrize("text", ["", "mat1 and mat2 must have the same dtype, but got Float and BFloat16"])
def test_own_generate_is_let_be(text: str) -> None:
    """Where no dtype helps there either, it is the very exception."""
    error = RuntimeError(text)
    model = guard(with_own_generate(error, always=True))
    with pytest.raises(RuntimeError) as caught:
        model.generate(IDS, max_new_tokens=4)
    assert caught.value is error
    assert (model.dtype, report(model).events) == (BF16, ())


def test_processors_are_the_callers() -> None:
    """What a logits processor raises comes through at once, whatever its words."""
    model, calls = guard(tiny()), []
    error = RuntimeError("\"rshift_cpu\" not implemented for 'Half'")

    def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        raise error

    with pytest.raises(RuntimeError) as caught:
        model.generate(IDS, max_new_tokens=3, logits_processor=LogitsProcessorList([process]))
    assert caught.value is error
    assert (calls, model.dtype) == ([1], BF16)
