"""The bar: failures of texts that nobody knows, raised inside real modules, are cured where a dtype cures them, and let be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from guarding.diagnosis.texts import CURABLE, INCURABLE, VETOED
from guarding.generators import tiny
from torch import nn
from transformers import DynamicCache

from safe_dtype import FLOAT32, guard, report
from safe_dtype.models.islands import islands_in
from safe_dtype.models.recast import recast

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
IDS = torch.arange(3, 9)[None]
NEXT = torch.tensor([[9, 10]])

LAYER = "model.layers.1"
PLACES = ("mlp.down_proj", "self_attn.q_proj", "input_layernorm", "self_attn", "mlp", "", "self_attn.q_norm")


@pytest.fixture(autouse=True)
def _forgets() -> Iterator[None]:
    """Errors outlive the tests; the models in their tracebacks shall not."""
    yield
    for error in (*CURABLE, *INCURABLE, *VETOED):
        error.__traceback__ = error.__context__ = None


def in_16_bit(module: nn.Module, tensors: list[Any]) -> bool:
    """Whether a module has weights or inputs in 16 bit."""
    values = [*module.parameters(), *tensors]
    return any(isinstance(value, torch.Tensor) and value.dtype in (BF16, FP16) for value in values)


def always(module: nn.Module, tensors: list[Any]) -> bool:
    """Whether a module runs."""
    return True


@contextmanager
def raising(
    model: Any, place: str, way: int, error: Exception, when: Callable[[nn.Module, list[Any]], bool]
) -> Iterator[list[int]]:
    """Have a module of `model` raise `error`, from a hook, from a hook behind it, or from its own forward; count it."""
    target, fired = model.get_submodule(place), [0]

    def check(module: nn.Module, tensors: list[Any]) -> None:
        if when(module, tensors):
            fired[0] += 1
            raise error

    if way == 0:
        handle = target.register_forward_pre_hook(
            lambda module, args, kwargs: check(module, [*args, *kwargs.values()]), with_kwargs=True
        )
        undo = handle.remove
    elif way == 1:
        handle = target.register_forward_hook(
            lambda module, args, kwargs, output: check(module, [*args, *kwargs.values()]), with_kwargs=True
        )
        undo = handle.remove
    else:
        plain = type(target)

        class Failing(plain):  # type: ignore[misc, valid-type]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output = super().forward(*args, **kwargs)
                check(self, [*args, *kwargs.values()])
                return output

        target.__class__ = Failing

        def undo() -> None:
            target.__class__ = plain

    try:
        yield fired
    finally:
        undo()


def begun(model: Any) -> DynamicCache:
    """Return the cache after a prompt."""
    cache = DynamicCache(config=model.config)
    model(input_ids=IDS, past_key_values=cache)
    return cache


def state(model: Any, cache: Any) -> list[Any]:
    """Return everything that a failed call must leave as it was."""
    return [
        {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers],
        torch.get_rng_state(),
        model.dtype,
        model.config._attn_implementation,
        list(islands_in(model)),
        report(model).events,
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    ]


def differs(one: Any, other: Any) -> bool:
    """Whether two states differ, in dtype or in any bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype != other.dtype or not torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(differs(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and not isinstance(one, str):
        return len(one) != len(other) or any(differs(a, b) for a, b in zip(one, other, strict=True))
    return bool(one != other)


def way_of(index: int, error: Exception) -> int:
    """Return how an error is raised; one of a class of ours not from a hook: it would be how we leave the forward."""
    return index % 3 if type(error).__module__ == "builtins" else 2


def cases(errors: list[Exception]) -> list[Any]:
    """Return every error with a place to raise it, and a way; every second round of the places is slow."""
    return [
        pytest.param(error, f"{LAYER}.{PLACES[index % len(PLACES)]}".rstrip("."), way_of(index, error),
                     id=f"{index}-{type(error).__name__}",
                     marks=pytest.mark.slow if index // len(PLACES) % 2 else ())
        for index, error in enumerate(errors)
    ]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("error", "place", "way"), cases(CURABLE))
def test_curable(error: Exception, place: str, way: int) -> None:
    """The call returns what float32 returns from that step on, and the model goes on in it."""
    model, plain = guard(tiny()), tiny()
    caches = [begun(one) for one in (model, plain)]
    with raising(model, place, way, error, in_16_bit):
        mine = [model(input_ids=NEXT, past_key_values=caches[0]).logits]
        mine.append(model(input_ids=NEXT, past_key_values=caches[0]).logits)
    recast(plain, {BF16}, FP32)
    for layer in caches[1].layers:
        layer.keys, layer.values = layer.keys.float(), layer.values.float()
    theirs = [plain(input_ids=NEXT, past_key_values=caches[1]).logits for _ in range(2)]
    if "Ampere" in str(error.args) and mine[0].dtype == BF16:
        assert model.config._attn_implementation == "eager"
        return
    assert not differs(mine, theirs)
    (event,) = report(model).events[-1:]
    assert event.after == FLOAT32
    assert not any("Failing" in type(one).__name__ for one in copy.deepcopy(model).modules())


@torch.no_grad()
@pytest.mark.parametrize(("error", "place", "way"), cases(INCURABLE))
def test_incurable(error: Exception, place: str, way: int) -> None:
    """The very exception comes through, with its traceback, its cause and its context; nothing else has changed."""
    model = guard(tiny())
    cache = begun(model)
    before, cause = state(model, cache), error.__cause__
    with raising(model, place, way, error, always), pytest.raises(type(error)) as caught:
        model(input_ids=NEXT, past_key_values=cache)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (cause, None)
    names = [entry.name for entry in caught.traceback]
    assert names.count("guarded_step") == 1
    assert names[-1] == "check"
    assert not differs(before, state(model, cache))
    model(input_ids=NEXT, past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize(("error", "place", "way"), cases(VETOED))
def test_vetoed(error: Exception, place: str, way: int) -> None:
    """What no dtype can cure is not tried again: it is raised once, and comes through."""
    model = guard(tiny())
    cache = begun(model)
    before = state(model, cache)
    with raising(model, place, way, error, in_16_bit) as fired, pytest.raises(type(error)) as caught:
        model(input_ids=NEXT, past_key_values=cache)
    assert caught.value is error
    assert fired == [1]
    after = state(model, cache)
    assert not differs(before[:1] + before[2:], after[:1] + after[2:])


@torch.no_grad()
@pytest.mark.parametrize(("error", "place", "way"), cases(CURABLE[::9]))
def test_fails_once(error: Exception, place: str, way: int) -> None:
    """What passes the second time has nothing to do with the dtype: the model stays as it is, and so does its result."""
    model, plain = guard(tiny()), tiny()
    calls = [0]

    def once(module: nn.Module, tensors: list[Any]) -> bool:
        calls[0] += 1
        return calls[0] == 1

    with raising(model, place, way, error, once):
        found = model(input_ids=IDS).logits
    assert torch.equal(found, plain(input_ids=IDS).logits)
    assert model.dtype == BF16
    assert report(model).events == ()


@torch.no_grad()
@pytest.mark.parametrize("place", ["mlp.down_proj", "input_layernorm"])
def test_a_step_is_not_run_for_the_trial(place: str) -> None:
    """Where the module alone shows what cures it, its step runs twice: as it failed, and as it went on."""
    model, calls = guard(tiny()), []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(module))
    with raising(model, f"{LAYER}.{place}", 0, CURABLE[0], in_16_bit):
        model(input_ids=IDS)
    assert len(calls) == 2
    assert report(model).events
