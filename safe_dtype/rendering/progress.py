"""How far something long has come: told by what works, heard by whoever listens in the same thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, float], None]  # gets what is being done, and the share of the whole that is done: 0 to 1

_listener: ContextVar[Listener | None] = ContextVar("progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let `listener` hear what is told inside."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell(what: str, done: float, total: float) -> None:
    """Tell that `done` of `total` is done; nothing where nobody listens, or `total` is 0."""
    listener = _listener.get()
    if listener is not None and total:
        listener(what, min(done / total, 1.0))


@contextmanager
def part(what: str, number: int, of: int) -> Iterator[None]:
    """Let all that is told inside be about part `number` (from 0) `of` a whole, under the name `what`."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    tell(what, number, of)
    with listening(lambda _, share: listener(what, (number + share) / of)):
        yield
    tell(what, number + 1, of)
