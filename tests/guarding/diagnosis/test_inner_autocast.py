"""Where a module opens an autocast inside of its own forward and fails under it, that is turned off and named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from guarding.generators import tiny
from torch import nn

from safe_dtype import guard, report
from safe_dtype.errors import StrictModeError
from safe_dtype.guarding.diagnosis import names_autocast

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
IDS = torch.arange(3, 9)[None]
OFF = "the model's own torch.autocast(dtype=float16) turned off"


class Inline(nn.Module):
    """A block that computes in float16, whatever its weights are in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Beyond float16: the product is 1e5 times as large as what comes in."""
        with torch.autocast("cpu", torch.float16):
            return self.inner(x * 1e5).to(x.dtype) / 1e5


@contextlib.contextmanager
def in_half() -> Iterator[None]:
    """Turn it on as helpers do."""
    with torch.amp.autocast("cpu", dtype=torch.float16):
        yield


class ByAHelper(Inline):
    """... by a function of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same."""
        with in_half():
            return self.inner(x * 1e5).to(x.dtype) / 1e5


class Decorated(Inline):
    """... around the whole forward."""

    @torch.autocast("cpu", torch.float16)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same."""
        return self.inner(x * 1e5).to(x.dtype) / 1e5


class Raising(Inline):
    """... and has an operation that is not there in float16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raise a text that nobody knows."""
        with torch.autocast("cpu", torch.float16):
            y = self.inner(x)
            if y.dtype == torch.float16:
                raise ValueError("kernel 17 has no such tile")
        return y.to(x.dtype)


class Off(nn.Module):
    """A block that turns an autocast off: nobody's fault."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As it is."""
        with torch.autocast("cpu", enabled=False):
            return self.inner(x)


def with_block(block: type[Any], dtype: torch.dtype) -> Any:
    """Return a model with one such block in it."""
    model = tiny().to(dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False)
    model.model.layers[1].mlp.up_proj = block(model.model.layers[1].mlp.up_proj)
    return model


@torch.no_grad()
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("block", [Inline, ByAHelper, Decorated, Raising])
def test_turned_off_and_named(block: type[Any], dtype: torch.dtype) -> None:
    """The step gives what the weights give without it, in their dtype; the event names the autocast and the module."""
    model = guard(with_block(block, dtype))
    plain = with_block(block, dtype)
    inner = plain.model.layers[1].mlp.up_proj.inner
    scale = 1 if block is Raising else 1e5
    plain.model.layers[1].mlp.up_proj.forward = lambda x: inner(x * scale).to(x.dtype) / scale
    wanted = plain(input_ids=IDS).logits
    found = model(input_ids=IDS).logits
    assert torch.equal(found, wanted)
    assert model.dtype is dtype
    (event,) = report(model).events
    assert event.remedy == OFF
    assert event.before == event.after
    assert "is on in the forward of model.layers.1.mlp.up_proj" in event.message
    assert torch.equal(model(input_ids=IDS).logits, wanted)  # it stays off
    assert len(report(model).events) == 1


@torch.no_grad()
def test_a_generation() -> None:
    """A generation goes on with the tokens of one without it."""
    model, other = guard(with_block(Inline, BF16)), with_block(Off, BF16)
    other.model.layers[1].mlp.up_proj.inner.register_forward_pre_hook(lambda _, args: (args[0] * 1e5,))
    other.model.layers[1].mlp.up_proj.register_forward_hook(lambda _, args, output: output.to(args[0].dtype) / 1e5)
    tokens = [one.generate(IDS, max_new_tokens=6, do_sample=False) for one in (model, other)]
    assert torch.equal(*tokens)


@torch.no_grad()
@pytest.mark.parametrize("block", [Inline, Raising])
def test_strict(block: type[Any]) -> None:
    """In strict mode nothing is changed, and the error says where it is."""
    model = guard(with_block(block, BF16), policy="strict")
    with pytest.raises(StrictModeError) as caught:
        model(input_ids=IDS)
    assert "Next: leave out the torch.autocast in the forward of model.layers.1.mlp.up_proj" in str(caught.value)
    assert model.dtype is BF16


@torch.no_grad()
def test_not_the_cause() -> None:
    """One that is turned off, and one that has nothing to do with the failure, are left alone; torch's class too."""
    enter = torch.amp.autocast_mode.autocast.__enter__
    model = guard(with_block(Off, BF16))

    def fail(module: Any, _args: Any) -> None:
        if module.weight.dtype == BF16:
            raise ValueError("kernel 17 has no such tile")

    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(fail)
    model(input_ids=IDS)
    (event,) = report(model).events
    assert (event.remedy, event.autocast) == ("float32", "")
    assert torch.amp.autocast_mode.autocast.__enter__ is enter


def test_code_without_a_hash() -> None:
    """Code with a slice among its constants, as torch's compiler makes it, is looked into as all other."""

    def fail() -> None:
        torch.is_autocast_enabled("cpu")
        raise ValueError

    fail.__code__ = fail.__code__.replace(co_consts=(*fail.__code__.co_consts, slice(None)))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (its frame is what is looked at)
        fail()
    error = caught.value.with_traceback(caught.tb.tb_next)  # without the frame of this test, which names one
    assert not names_autocast(nn.Linear(2, 2), error)
