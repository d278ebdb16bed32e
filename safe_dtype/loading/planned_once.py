"""Each call of `from_pretrained` is planned once: one that has its plan is not planned again where it is patched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Here(threading.local):
    planned = False  # the next model that this thread loads
    whole = 0  # how many loads this thread is in whose models are all planned


_here = _Here()


@contextmanager
def already_planned() -> Iterator[None]:
    """Mark the model that is loaded next in this thread as planned already."""
    before, _here.planned = _here.planned, True
    try:
        yield
    finally:
        _here.planned = before


@contextmanager
def all_planned() -> Iterator[None]:
    """Mark every model that is loaded in this block, in this thread, as planned already."""
    _here.whole += 1
    try:
        yield
    finally:
        _here.whole -= 1


def take_planned() -> bool:
    """Return whether the model that is loaded now is planned already, and take the mark off for the next one."""
    if _here.whole:
        return True
    planned, _here.planned = _here.planned, False
    return planned
