"""Which loop of this thread reads the verdict on its steps later, if any."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..step_snapshot import StepSnapshot
    from .loop_watch import LoopWatch


@dataclass(frozen=True, slots=True)
class UnreadStep:
    """A step that has run, whose numbers nobody has looked at yet, and all that it takes to run it again."""

    forward: Callable[..., Any]  # as the loop has called it
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    snapshot: StepSnapshot  # of the state before it
    version: int  # of the guard: which changes of the model it ran with


class ThisThread(threading.local):
    """The watch over the decoding loop that this thread is in."""

    watch: LoopWatch | None = None  # None: in none, or its steps are looked at where they are made


this_thread = ThisThread()


@contextmanager
def left_to_the_caller() -> Iterator[None]:
    """Have a block of the caller's own code within a loop looked at where it is made: it may call the model."""
    around, this_thread.watch = this_thread.watch, None
    try:
        yield
    finally:
        this_thread.watch = around


def is_put_off() -> bool:
    """Whether the numbers of the step that this thread is in are looked at later."""
    watch = this_thread.watch
    return watch is not None and watch.takes_step()


def put_off(step: UnreadStep, is_spoiled: torch.Tensor) -> bool:
    """Have the loop around `step` judge it later, by a flag on the device. False: it has to be looked at now."""
    watch = this_thread.watch
    return watch is not None and watch.take(step, is_spoiled)


def look_at_once() -> None:
    """Have everything until the next token looked at where it is made: something has failed."""
    if this_thread.watch is not None:
        this_thread.watch.look_at_once()
