"""Where the caller's own autocast fails, it is turned off and named; the weights are left alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import nn
from torch.amp.autocast_mode import autocast
from transformers import LlamaConfig, LlamaForCausalLM

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, guard, report, unguard
from safe_dtype.errors import StrictModeError
from safe_dtype.guarding.state import guard_of
from safe_dtype.testing import TEXTS, fault

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
IDS = torch.arange(5, 29)[None]
NAMED = "torch.autocast(dtype=float16)"
OFF = f"the caller's {NAMED} turned off"


def llama(dtype: torch.dtype, *, beyond: bool = True) -> Any:
    """Return a model whose activations are beyond float16."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=96, pad_token_id=0, eos_token_id=None, initializer_range=0.3, **size)
    )
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 4000 if beyond else 1
    return model.to(dtype).eval()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_one_call(dtype: torch.dtype, mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A step under it gives the very bits of one without it, in the same weights; the event and the log name it."""
    model = guard(llama(dtype))
    with mode():
        wanted = llama(dtype)(IDS).logits
        with torch.autocast("cpu", FP16), caplog.at_level(logging.WARNING):
            found = model(IDS).logits
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is FP16  # what is not the model's keeps it
            assert torch.equal(model(IDS).logits, wanted)
    assert torch.equal(found, wanted)
    assert model.dtype is dtype
    (event,) = report(model).events
    assert event.remedy == OFF
    assert event.before == event.after
    assert NAMED in event.message
    assert f"under {NAMED}" in caplog.text
    assert torch.equal(model(IDS).logits, wanted)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("sampled", [False, True])
@torch.no_grad()
def test_a_generation(dtype: torch.dtype, *, sampled: bool) -> None:
    """A generation goes on with the tokens of one without it."""
    tokens = []
    for model, is_on in ((llama(dtype), False), (guard(llama(dtype)), True)):
        torch.manual_seed(3)
        with torch.autocast("cpu", FP16, enabled=is_on):
            tokens.append(model.generate(IDS, max_new_tokens=8, do_sample=sampled))
    assert torch.equal(*tokens)


@torch.no_grad()
def test_in_the_middle_of_a_generation() -> None:
    """Keys and values of steps under it fit to what follows."""
    model = guard(llama(BF16, beyond=False))
    calls = []

    def spoil(module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(output.dtype)
        return output * float("nan") if output.dtype is FP16 and len(calls) > 4 else output

    model.model.layers[2].mlp.down_proj.register_forward_hook(spoil)
    with torch.autocast("cpu", FP16):
        tokens = model.generate(IDS, max_new_tokens=8, do_sample=False)
    assert tokens.shape == (1, 32)
    assert [event.remedy for event in report(model).events] == [OFF]
    assert model.dtype is BF16
    assert calls[0] is FP16
    assert calls[-1] is BF16


@contextmanager
def without_bfloat16(module: nn.Module) -> Iterator[None]:
    """Have a module raise wherever it multiplies in bfloat16, as a V100 does."""

    def refuse(running: Any, _args: Any) -> None:
        under = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is BF16
        if under or (running.weight.dtype is BF16 and not torch.is_autocast_enabled("cpu")):
            raise RuntimeError(TEXTS["cublas"])

    handle = module.register_forward_pre_hook(refuse)
    yield
    handle.remove()


@torch.no_grad()
def test_weights_in_a_dtype_that_the_device_has_not() -> None:
    """Where the weights are in the dtype of the autocast, it goes on in the other one, which casts them."""
    model = guard(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(BF16).eval())
    x = torch.ones(1, 4, dtype=BF16)
    with torch.autocast("cpu", FP16):
        wanted = copy.deepcopy(model)(x)
    with without_bfloat16(model[1]), torch.autocast("cpu", BF16):
        assert torch.equal(model(x), wanted)
        assert torch.equal(model(x), wanted)
    assert report(model).dtype == BFLOAT16
    assert [event.remedy for event in report(model).events] == [
        "the caller's torch.autocast(dtype=bfloat16) in float16"
    ]


@pytest.mark.parametrize(("dtype", "after"), [(FP32, FLOAT32), (FP16, FLOAT16)])
@torch.no_grad()
def test_a_device_without_bfloat16(dtype: torch.dtype, after: Any) -> None:
    """Autocast to a dtype that the device has not is turned off, and the weights stay as they are."""
    model = guard(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(dtype).eval())
    wanted = copy.deepcopy(model).to(getattr(torch, after.name))(torch.ones(1, 4, dtype=getattr(torch, after.name)))
    with without_bfloat16(model[1]), torch.autocast("cpu", BF16):
        assert torch.equal(model(torch.ones(1, 4, dtype=dtype)), wanted)
    assert report(model).dtype == after
    assert report(model).events[0].remedy == "the caller's torch.autocast(dtype=bfloat16) turned off"


def as_accelerate_does(model: nn.Module, dtype: torch.dtype) -> None:
    """Put an autocast around a model's forward: `Accelerator.prepare` does so, with float16 on CUDA alone."""
    model.forward = MethodType(torch.autocast("cpu", dtype)(model.forward.__func__), model)
    model.forward = MethodType(convert_outputs_to_fp32(model.forward.__func__), model)


@pytest.mark.parametrize("guarded_first", [True, False])
@torch.no_grad()
def test_mixed_precision_around_forward(*, guarded_first: bool) -> None:
    """So it is where accelerate put it around the model's forward."""
    model = llama(BF16)
    if guarded_first:
        guard(model)
    as_accelerate_does(model, FP16)
    if not guarded_first:
        guard(model)
    assert torch.equal(model(IDS).logits, llama(BF16)(IDS).logits.float())
    assert [event.remedy for event in report(model).events] == [OFF]
    model.train()
    assert model(IDS).logits.isnan().any()  # training is left alone


@pytest.fixture
def accelerate_anew() -> Iterator[None]:
    """Let an Accelerator have other settings than one that another test made in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@torch.no_grad()
@pytest.mark.usefixtures("accelerate_anew")
def test_accelerate() -> None:
    """A model that accelerate prepared with mixed precision goes on where the device has not the dtype."""
    model = Accelerator(mixed_precision="bf16", cpu=True).prepare(guard(nn.Sequential(nn.Linear(4, 4)).eval()))
    wanted = nn.functional.linear(torch.ones(1, 4), model[0].weight, model[0].bias)
    with without_bfloat16(model[0]):
        assert torch.equal(model(torch.ones(1, 4)), wanted)
    assert report(model).dtype == FLOAT32
    assert report(model).events[0].remedy.endswith("turned off")


class Adapted(nn.Module):
    """A linear layer in bfloat16 with an adapter in float32, which meet under autocast alone."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.adapter = nn.Linear(4, 64).to(BF16), nn.Linear(4, 64)
        self.out = nn.Linear(64, 4).to(BF16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return self.out((self.base(x) + self.adapter(x)) * 1e5)


@torch.no_grad()
def test_the_other_dtype() -> None:
    """Where weights of several dtypes meet without it, it computes in the dtype that has the range."""
    torch.manual_seed(0)
    model = guard(Adapted().eval())
    x = torch.ones(1, 4)
    with torch.autocast("cpu", BF16):
        wanted = model(x)
    with torch.autocast("cpu", FP16):
        assert torch.equal(model(x), wanted)
    event = report(model).events[-1]
    assert event.remedy == f"the caller's {NAMED} in bfloat16"
    assert f" (bfloat16, under {NAMED}) -> " in str(event)
    assert model.adapter.weight.dtype is FP32
    assert model.base.weight.dtype is BF16


@torch.no_grad()
def test_strict() -> None:
    """In strict mode nothing is changed, and the error names it."""
    for dtype in (FP32, BF16):
        model = guard(llama(dtype), policy="strict")
        with torch.autocast("cpu", FP16), pytest.raises(StrictModeError) as caught:
            model(IDS)
        assert f"under {NAMED}" in str(caught.value)
        assert f"without {NAMED}" in str(caught.value)
        assert "NaN or Inf in the results" in str(caught.value)
        assert "Next: leave out the torch.autocast around this call, or use no 'strict'." in str(caught.value)
        assert model.dtype is dtype


@torch.no_grad()
def test_strict_in_the_other_dtype() -> None:
    """Where another dtype of the autocast would work, that is what the error names, and the text of what was raised."""
    torch.manual_seed(0)
    model = guard(Adapted().eval(), policy="strict")
    with torch.autocast("cpu", FP16), pytest.raises(StrictModeError) as caught:
        model(torch.ones(1, 4))
    assert caught.value.would_work == ("torch.autocast(dtype=bfloat16)",)
    assert "Next: use torch.autocast(dtype=bfloat16) around this call, or use no 'strict'." in str(caught.value)


@torch.no_grad()
def test_numbers_that_are_bad_without_it_too() -> None:
    """Where the same NaN is there without it, it is put back, and the caller gets what plain torch gives."""
    model = guard(nn.Sequential(nn.Linear(4, 4)).eval())
    model[0].bias[0] = torch.nan
    with torch.autocast("cpu", FP16):
        for _ in range(2):
            output = model(torch.ones(1, 4))
            assert output.isnan().any()
            assert output.dtype is FP16
    assert guard_of(model).override is None
    assert report(model).dtype == FLOAT32


@torch.no_grad()
def test_it_is_not_blamed_for_others() -> None:
    """A failure of another dtype than the autocast's is cured as ever."""
    model = guard(nn.Sequential(nn.Linear(4, 4)).to(BF16).eval())
    with torch.autocast("cpu", FP16), fault(model, "0", "not_implemented"):
        model(torch.ones(1, 4, dtype=BF16))
    assert report(model).dtype == FLOAT32
    assert report(model).events[0].before == BFLOAT16


class LogNdtr(nn.Linear):
    """A layer whose last operation has no kernel in 16 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply, in the dtype of the autocast where one is on, and compute in what comes of it."""
        return torch.special.log_ndtr(super().forward(x))


@torch.no_grad()
def test_what_needs_float32_and_no_autocast() -> None:
    """Weights in float32 alone do not help, nor does another autocast: both are left, and the event names both."""
    model, x = LogNdtr(4, 4).to(BF16).eval(), torch.ones(1, 4, dtype=BF16)
    wanted = copy.deepcopy(model).float()(x.float())
    guard(model)
    with torch.autocast("cpu", BF16):
        assert torch.equal(model(x), wanted)
        assert torch.equal(model(x), wanted)
    (event,) = report(model).events
    assert (event.before, event.after, event.autocast) == (BFLOAT16, FLOAT32, "torch.autocast(dtype=bfloat16)")


@torch.no_grad()
def test_strict_names_both() -> None:
    """Nothing is changed in strict mode; the error tells to leave the autocast as well."""
    model = guard(LogNdtr(4, 4).to(BF16).eval(), policy="strict")
    with (
        torch.autocast("cpu", BF16),
        pytest.raises(StrictModeError, match=r"Would work: float32. Next: leave out the torch.autocast\(.*load"),
    ):
        model(torch.ones(1, 4, dtype=BF16))
    assert model.weight.dtype is BF16
    assert guard_of(model).override is None


@torch.no_grad()
def test_no_trace() -> None:
    """Taken off its guard, a model runs under autocast again, and torch's class is as it was."""
    enter = autocast.__enter__
    model = guard(llama(BF16))
    with torch.autocast("cpu", FP16):
        assert model(IDS).logits.isfinite().all()
        unguard(model)
        assert model(IDS).logits.isnan().any()
    assert autocast.__enter__ is enter
