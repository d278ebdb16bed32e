"""Record what happened to a guarded model, and hand it to the callables of the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .failure import Event
from .model_lock import Turn
from .registration import Registered, Registration
from .state import CALL, Guard, here

logger = logging.getLogger(__name__)

EventCallable = Callable[[nn.Module, Event], Any]


class _Listener:
    """A callable of the user. Its exceptions end here."""

    def __init__(self, call: EventCallable) -> None:
        self._call = call
        self._has_raised = False

    def hand(self, model: nn.Module, event: Event) -> None:
        """Call it; log its first exception."""
        try:
            self._call(model, event)
        except Exception:
            if not self._has_raised:
                self._has_raised = True
                logger.exception(
                    "%r, registered with on_event, failed on an event of %s. The model goes on; further exceptions of "
                    "this callable are not logged", self._call, type(model).__name__,
                )  # fmt: skip


_listeners: Registered[_Listener] = Registered()


def on_event(call: EventCallable) -> Registration:
    """Have `call(model, event)` called for every event of every guarded model of this process, as it happens.

        def count(model, event):
            remedies.labels(type(model).__name__, event.kind.value, event.remedy).inc()

        safe_dtype.on_event(count)

    What ends a call of the model is raised as an error and is no event: `NoDtypeLeft`, `StrictModeError`.

    Args:
        call: Called with the model that was passed to `guard` and with the `Event`, in the thread that ran into it,
            after the model was changed and before the failed step runs again. That step waits for it, steps in other
            threads do not, and they may call it at the same time. What it returns is ignored. Its first exception is
            logged with the traceback, and the generation goes on. To remember the model it should keep a weak
            reference: any other keeps the weights in memory.

    Returns:
        The registration. Its `remove()` takes the callable off again, and so does the end of a `with` block. Several
        callables are called in the order in which they were registered; one registered twice is called twice.
    """
    return _listeners.add(_Listener(call))


def record(guard: Guard, event: Event) -> None:
    """Record an event of a guarded model. Only inside of `changing`, which hands it on."""
    guard.events.append(event)


@contextmanager
def changing(guard: Guard, turn: Turn | None = None) -> Iterator[None]:
    """Keep all steps of the model waiting for a change; then hand the events of the change to the callables of the user.

    With `turn`, whoever made that can end the change where an exception of a signal has cut its end off.

    They are called when steps run again: one that takes long or runs the model itself would block them otherwise.
    """
    recorded: list[Event] = []
    model, around = guard.model(), here.running
    try:
        with guard.lock.change(turn):
            before = len(guard.events)
            if (
                model is not None
            ):  # what runs meanwhile, to find out what helps, is no step: it would wait for the change
                here.running = (*around, (guard, model, CALL))
            try:
                yield
            finally:
                here.running = around
                recorded += guard.events[before:]
    finally:
        if model is not None:
            for event in recorded:
                hand_on(model, event)


def hand_on(model: nn.Module, event: Event) -> None:
    """Call what the user has registered, with an event of `model`."""
    for listener in _listeners:
        listener.hand(model, event)
