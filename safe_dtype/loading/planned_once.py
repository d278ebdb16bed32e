"""Whose turn it is to plan: a call of `from_pretrained` that has its plan is not planned again where it is patched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Here(threading.local):
    planned = False  # the next model that this thread loads


_here = _Here()


@contextmanager
def with_plan() -> Iterator[None]:
    """Say that the model loaded next in this thread has its plan."""
    before, _here.planned = _here.planned, True
    try:
        yield
    finally:
        _here.planned = before


def take_turn() -> bool:
    """Return whether the model loaded now has its plan. The one after it has none."""
    planned, _here.planned = _here.planned, False
    return planned
