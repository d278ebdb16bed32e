"""Entries inside entries: what runs inside a step is a part of it, and a model inside another one is guarded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..state import CALL, Guard, here
from .entry_methods import FORWARD

_GENERATE = "generate"


def is_covered(guard: Guard, module: nn.Module, entry: str) -> bool:
    """Whether a call of `module`, or of its method `entry`, is a part of a step that this thread is in.

    Only steps of the guard that answers for `module` count, and of those whose models contain it: a model that is merely
    called by another one, as a teacher is, has steps of its own.
    """
    for running_guard, caller, entered in reversed(here.running):
        if (
            running_guard is guard and entered is CALL
        ):  # nearly always the innermost is one, and this all there is to it
            return True
        if (running_guard is guard or module in running_guard.parts) and not _drives(caller, entered, module, entry):
            return True
    return False


def _drives(caller: nn.Module, method: str, module: nn.Module, entry: str) -> bool:
    """Whether a method that is running calls the whole model, or what generates: it is a loop, and this a step in it."""
    if method in (CALL, FORWARD) or entry not in (CALL, FORWARD, _GENERATE):
        return False
    can_generate = getattr(module, "can_generate", None)
    return module is caller or (callable(can_generate) and bool(can_generate()))


@contextmanager
def set_aside(guard: Guard) -> Iterator[None]:
    """Set the method aside that this thread runs, if any: every call of a model inside the block is a step of its own."""
    around = here.running
    here.running = tuple(step for step in around if step[0] is not guard)
    try:
        yield
    finally:
        here.running = around


@contextmanager
def trained() -> Iterator[None]:
    """Let calls with gradients be in the block: whoever trains runs them again where they fail, on all ranks together."""
    here.trains += 1
    try:
        yield
    finally:
        here.trains -= 1
