"""`on_event` hands every event of every guarded model to the user's callables, and none of them can break a generation."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import DOWN, tiny, with_unknown_cache
from torch import nn

from safe_dtype import FLOAT32, guard, on_event, report
from safe_dtype.errors import CannotResumeError, StrictModeError
from safe_dtype.guarding import Event
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]


class Received:
    """A callable that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, Event]] = []

    def __call__(self, model: nn.Module, event: Event) -> None:
        """Keep both."""
        self.calls.append((model, event))

    def events_of(self, model: nn.Module) -> tuple[Event, ...]:
        """Return the events of one model, in their order."""
        return tuple(event for owner, event in self.calls if owner is model)


def call(model: Any) -> None:
    """Call the model itself."""
    model(input_ids=IDS)


def generate(model: Any) -> None:
    """Generate a few tokens."""
    model.generate(IDS, max_new_tokens=4)


def generate_anew(model: Any) -> None:
    """Generate with a cache that cannot be brought back: the generation begins anew."""
    with_unknown_cache(model).generate(IDS, max_new_tokens=4)


def generate_batch(model: Any) -> None:
    """Generate with continuous batching."""
    config = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = transformers.ContinuousBatchingConfig(num_blocks=64, block_size=32, max_batch_tokens=64)
    model.generate_batch([[5, 6, 7], [9, 10]], config, continuous_batching_config=small)


# Of a batch transformers 5.16 drops requests that fail.
@pytest.mark.parametrize(
    "run",
    [call, generate, generate_anew, pytest.param(generate_batch, marks=pytest.mark.needs("transformers>=5.17"))],
)
@pytest.mark.parametrize("kind", ["cublas", "mismatch"])
def test_every_way_to_run(run: Any, kind: str) -> None:
    """However a model runs, the callable gets the events of its report, with the model itself."""
    model, received = guard(tiny()), Received()
    with on_event(received), fault(model, DOWN, kind, call=0 if run is call else 1):
        run(model)
    assert received.events_of(model) == report(model).events != ()
    assert len(received.calls) == len(report(model).events)


def test_what_no_dtype_cures() -> None:
    """A NaN in float32, handed on to the caller, is an event too: its `after` is None."""
    model, received = guard(tiny(dtype=torch.float32)), Received()
    with on_event(received), fault(model, DOWN, "nan", dtype=FLOAT32):
        call(model)
    (event,) = received.events_of(model)
    assert (event.after, event.module) == (None, DOWN)


def test_events_before_an_error() -> None:
    """Where a call ends with an error, the changes that were made before it are handed on."""

    class OwnCache(transformers.DynamicCache):
        pass

    model, received = guard(tiny()), Received()
    with on_event(received):
        with fault(model, DOWN, "cublas"), pytest.raises(CannotResumeError):
            model(input_ids=IDS, past_key_values=OwnCache())
        assert [event.after for event in received.events_of(model)] == [FLOAT32]
        other = guard(tiny())
        with fault(other, DOWN, "cublas"), fault(other, DOWN, "cublas", dtype=FLOAT32), pytest.raises(RuntimeError):
            call(other)
        assert received.events_of(other) == report(other).events == ()
        strict = guard(tiny(), policy="strict")
        with fault(strict, DOWN, "cublas"), pytest.raises(StrictModeError):
            call(strict)
        assert received.events_of(strict) == ()


def test_as_it_happens() -> None:
    """The callable runs in the thread of the step, once the model has changed and before the step runs again."""
    model = guard(tiny())
    seen: list[tuple[int, torch.dtype, int]] = []
    with (
        fault(model, DOWN, "cublas") as put,
        on_event(lambda owner, event: seen.append((threading.get_ident(), model.dtype, put.calls))),
    ):
        call(model)
    assert seen == [(threading.get_ident(), torch.float32, put.calls)]


def test_two_models() -> None:
    """One callable gets the events of all models, each with its model."""
    first, second, received = guard(tiny()), guard(tiny()), Received()
    with on_event(received), fault(first, DOWN, "cublas"), fault(second, DOWN, "nan"):
        call(first)
        call(second)
    assert [(owner is first, event.kind.value) for owner, event in received.calls] == [
        (True, "op_unsupported"), (False, "nonfinite"),
    ]  # fmt: skip


def test_several_and_removed() -> None:
    """Callables are called in order; one that was removed is not, one that is there twice is called twice."""
    order: list[str] = []
    first = on_event(lambda model, event: order.append("first"))
    second = on_event(lambda model, event: order.append("second"))

    def twice(model: nn.Module, event: Event) -> None:
        order.append("twice")

    with on_event(twice), on_event(twice):
        failing_call()
        first.remove()
        first.remove()
        failing_call()
    failing_call()
    second.remove()
    failing_call()
    assert order == ["first", "second", "twice", "twice", "second", "twice", "twice", "second"]


def failing_call() -> nn.Module:
    """Call a fresh model that fails once."""
    model = guard(tiny())
    with fault(model, DOWN, "cublas"):
        call(model)
    assert len(report(model).events) == 1
    return model


def test_a_callable_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Its first exception is logged with the traceback; the generation and the other callables go on."""
    received = Received()

    def broken(model: nn.Module, event: Event) -> None:
        raise ZeroDivisionError("my counter is broken")

    with on_event(broken), on_event(received):
        failing_call()
        failing_call()
    assert len(received.calls) == 2
    (logged,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert "broken" in logged.getMessage()
    assert logged.exc_info is not None
    assert logged.exc_info[0] is ZeroDivisionError


def test_an_interrupt_comes_through() -> None:
    """What ends the program is no fault of a callable: it is not swallowed."""

    def interrupt(model: nn.Module, event: Event) -> None:
        raise KeyboardInterrupt

    with on_event(interrupt), pytest.raises(KeyboardInterrupt):
        failing_call()


def test_a_callable_may_run_the_model() -> None:
    """It may call, generate and ask for the report: no lock is held while it runs."""
    sizes: list[int] = []

    def run_it(model: Any, event: Event) -> None:
        model(input_ids=IDS)
        sizes.append(model.generate(IDS, max_new_tokens=2).shape[1] + len(report(model).events))

    for run in (call, generate_anew):
        model = guard(tiny())
        with on_event(run_it), fault(model, DOWN, "cublas"):
            run(model)
    assert sizes == [9, 9]


def test_it_keeps_no_model() -> None:
    """A registration alone keeps no model in memory."""
    with on_event(lambda model, event: None):
        reference = weakref.ref(failing_call())
        gc.collect()
        assert reference() is None


def test_threads() -> None:
    """Threads may register, remove and fail at the same time: every callable that stays gets every event."""
    received, stop = Received(), threading.Event()

    def register() -> None:
        while not stop.is_set():
            on_event(lambda model, event: None).remove()

    busy = threading.Thread(target=register)
    models = [guard(tiny()) for _ in range(4)]
    with on_event(received):
        busy.start()
        threads = [threading.Thread(target=generate, args=(model,)) for model in models]
        for model in models:
            spoil(model)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stop.set()
        busy.join(60)
    assert all(received.events_of(model) == report(model).events != () for model in models)


def spoil(model: Any) -> None:
    """Have a layer of the model fail in bfloat16 for good."""

    def fail(module: nn.Module, args: Any) -> None:
        if module.weight.dtype == torch.bfloat16:  # type: ignore[union-attr]
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
