"""An exception that a handler of a signal raises comes through, whatever its class, and nothing of ours stays behind."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarding.generators import tiny

from safe_dtype import guard, report
from safe_dtype.processes.handler_exceptions import is_of_a_signal

IDS = torch.arange(3, 9)[None]


class TooLateError(Exception):
    """What a server raises where a request has taken too long."""


class Deadline:
    """A handler that is an object."""

    def __call__(self, *_: object) -> None:
        """Raise."""
        raise TooLateError

    def reached(self, *_: object) -> None:
        """Raise, as a method."""
        raise TooLateError


def reached(*_: object) -> None:
    """Raise, as a function."""
    raise TooLateError


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no signals of the user's on this system")
@pytest.mark.parametrize("runs", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "handler",
    [reached, Deadline(), Deadline().reached, functools.partial(reached, 1)],
    ids=["function", "object", "method", "partial"],
)
def test_comes_through(handler: Callable[..., Any], runs: int) -> None:
    """In the step, in its repetition and in a trial."""
    model = tiny().to(torch.bfloat16)
    calls = [0]

    def fail(module: Any, _args: Any) -> None:
        calls[0] += 1
        if calls[0] == runs + 1:
            signal.raise_signal(signal.SIGUSR1)
        if module.weight.dtype == torch.bfloat16 and runs:
            raise RuntimeError("a text that nobody knows")

    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(fail)
    guard(model)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(TooLateError) as caught, torch.no_grad():
            model(IDS)
        assert is_of_a_signal(caught.value)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (model.dtype, report(model).events) == (torch.bfloat16, ())
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 1


def test_of_its_own() -> None:
    """An exception of a step that no handler has to do with."""
    with pytest.raises(TooLateError) as caught:
        reached()
    assert not is_of_a_signal(caught.value)
