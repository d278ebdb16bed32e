"""A chain of remedies that fails is taken back whole: weights, caches, attention, notes and events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarding.diagnosis.test_unknown_texts import IDS, NEXT, begun, differs, state
from guarding.generators import DOWN, tiny
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from safe_dtype import guard, report
from safe_dtype.models.cast_back import as_they_are
from safe_dtype.models.casting import cast_cache
from safe_dtype.testing import fault

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@torch.no_grad()
@pytest.mark.parametrize("policy", ["auto", "ladder=bf16>fp16>fp32", "auto,islands"])
@pytest.mark.parametrize(
    "make",
    [
        KeyboardInterrupt,
        SystemExit,
        MemoryError,
        lambda: RuntimeError("CUDA out of memory"),
        lambda: ValueError("mine"),
    ],
    ids=["interrupt", "exit", "memory", "device-memory", "the-callers"],
)
def test_whatever_ends_it(make: Callable[[], BaseException], policy: str) -> None:
    """Whatever is raised in the changed model comes through, and everything is as before the step."""
    how = make()
    model = guard(tiny(), policy=policy)
    cache = begun(model)

    def fail(module: Any, args: Any) -> None:
        if module.weight.dtype == BF16:
            raise RuntimeError("no such opcode")

    def end(module: Any, args: Any, output: Any) -> None:
        if model.get_submodule(DOWN).weight.dtype != BF16 and len(report(model).events) == 1:
            raise how

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    model.register_forward_hook(end)
    before = state(model, cache)
    with pytest.raises(type(how)) as caught:
        model(input_ids=NEXT, past_key_values=cache)
    assert caught.value is how
    assert not differs(before, state(model, cache))


@torch.no_grad()
@pytest.mark.parametrize(
    ("how", "says"),
    [(KeyboardInterrupt, "interrupted; the change was taken back (bfloat16 again)"), (ValueError, "did not help")],
)
def test_the_log_of_an_interrupt(how: type[BaseException], says: str, caplog: pytest.LogCaptureFixture) -> None:
    """An interrupt disproves nothing of what was tried, and the log does not say so."""
    model = guard(tiny())

    def fail(module: Any, args: Any) -> None:
        if module.weight.dtype == BF16:
            raise RuntimeError("no such opcode")

    def end(module: Any, args: Any, output: Any) -> None:
        if report(model).events:
            raise how

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    model.register_forward_hook(end)
    with pytest.raises(how):
        model(input_ids=IDS)
    assert says in caplog.records[-1].getMessage()


@pytest.mark.parametrize("new", [FP16, FP32])
def test_caches_and_outputs_come_back(new: torch.dtype) -> None:
    """Caches and outputs that were cast in place are what they were, bit for bit, halves and mixed dtypes too."""
    model = tiny()
    cache = begun(model)
    cache.layers[0].keys = cache.layers[0].keys.float()  # a state that is kept in float32
    cache.layers[1].keys.mul_(1e-7)
    both = EncoderDecoderCache(cache, begun(model))
    output = BaseModelOutput(last_hidden_state=torch.full((1, 2), 1e-8, dtype=BF16))
    before = [
        [layer.keys.clone(), layer.values.clone()]
        for half in (cache, both.cross_attention_cache)
        for layer in half.layers
    ]
    hidden = output.last_hidden_state
    undo = as_they_are([both, output, IDS], new)
    cast_cache(both, {BF16}, new)
    output["last_hidden_state"] = hidden.to(new)
    undo()
    after = [[layer.keys, layer.values] for half in (cache, both.cross_attention_cache) for layer in half.layers]
    assert not differs(before, after)
    assert output.last_hidden_state is hidden


@torch.no_grad()
def test_a_useless_attention_is_taken_back() -> None:
    """Another attention that did not help is not left behind by what helped."""
    model = guard(tiny())
    with fault(model, DOWN, "kernel_arch"):
        model(input_ids=IDS)
    assert [event.remedy for event in report(model).events] == ["eager attention", "float32"]
    assert model.config._attn_implementation == "sdpa"
