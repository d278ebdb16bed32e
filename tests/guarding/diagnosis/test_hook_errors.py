"""What a hook of the caller's raises on purpose ends the call at once, as without a guard."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarding.generators import tiny
from transformers import DynamicCache

from safe_dtype import guard, report
from safe_dtype.guarding.diagnosis.hook_errors import is_raised_by_a_hook

IDS = torch.arange(3, 9)[None]
LAYER = 1


class Found(Exception):  # noqa: N818  (as a caller may call what is no error)
    """What a caller looks for in a forward: no name that says that it leaves."""


class Probe:
    """A hook that leaves the forward with what it was called for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        """Leave."""
        self.calls += 1
        self.leave()

    def leave(self) -> None:
        """Raise, one function further in."""
        raise Found(self.calls)


WAYS: dict[str, Callable[[Any, Probe], Any]] = {
    "before": lambda module, probe: module.register_forward_pre_hook(probe),
    "behind": lambda module, probe: module.register_forward_hook(probe),
    "a-method": lambda module, probe: module.register_forward_hook(probe.__call__),
    "a-partial": lambda module, probe: module.register_forward_hook(functools.partial(probe)),
    "a-function": lambda module, probe: module.register_forward_hook(lambda *_: probe()),
    "under-no-grad": lambda module, probe: module.register_forward_hook(torch.no_grad()(lambda *_: probe())),
}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_ends_the_call(way: str) -> None:
    """The hook runs once; the very exception comes through, and the cache holds what the layers before have written."""
    model, probe = guard(tiny()), Probe()
    WAYS[way](model.model.layers[LAYER], probe)
    cache = DynamicCache(config=model.config)
    with pytest.raises(Found) as caught:
        model(input_ids=IDS, past_key_values=cache)
    assert (probe.calls, caught.value.args) == (1, (1,))
    assert cache.get_seq_length(0) == IDS.shape[1]
    assert report(model).events == ()
    assert not hasattr(caught.value, "__notes__")


def test_ends_a_generation() -> None:
    """In a generation too."""
    model, probe = guard(tiny()), Probe()
    model.model.layers[LAYER].register_forward_hook(probe)
    with pytest.raises(Found):
        model.generate(IDS, max_new_tokens=3)
    assert probe.calls == 1


@torch.no_grad()
def test_of_a_kernel_in_a_hook() -> None:
    """What torch raises in a hook, where a product lacks a kernel or meets two dtypes, is put to the test and cured."""
    model = guard(tiny())
    steering = torch.eye(model.config.hidden_size)  # float32
    model.model.layers[LAYER].register_forward_hook(lambda _module, _args, output: output @ steering)
    model(input_ids=IDS)
    assert report(model).events


@pytest.mark.parametrize("error", [RuntimeError("opcode 7"), Found()], ids=["of-python", "own"])
def test_from_a_forward(error: Exception) -> None:
    """Not a hook's is what a forward raises, also that of a module which a hook calls."""

    class Failing(torch.nn.Module):
        def forward(self) -> None:
            raise error

    outer, inner = torch.nn.Identity(), Failing()
    outer.register_forward_hook(lambda *_: inner())
    with pytest.raises(type(error)) as caught:
        outer(torch.ones(1))
    assert not is_raised_by_a_hook(caught.value)
