"""What users add to safe_dtype while it runs, and take out again: callables for events, remedies of their own."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from ..processes.forked_lock import ForkedLock

T = TypeVar("T")


class Registered(Generic[T]):
    """Values in the order in which they were added. Any thread may add, remove and iterate at any time."""

    def __init__(self) -> None:
        self._lock = ForkedLock()
        self._entries: tuple[tuple[Registration, T], ...] = ()

    def __iter__(self) -> Iterator[T]:
        """Iterate over the values there are now; what is added or removed meanwhile does not count."""
        return iter([value for _, value in self._entries])

    def add(self, value: T) -> Registration:
        """Add `value`, and return what removes it. Added twice it is there twice."""
        registration = Registration(self)
        with self._lock:
            self._entries = (*self._entries, (registration, value))
        return registration

    def discard(self, registration: Registration) -> None:
        """Remove what was added under this registration; nothing happens where that was removed before."""
        with self._lock:
            self._entries = tuple(entry for entry in self._entries if entry[0] is not registration)


class Registration:
    """What takes a registered value out again: `remove()`, or the end of a `with` block."""

    def __init__(self, registered: Registered[Any]) -> None:
        self._registered = registered

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take it out. Nothing happens where that was done before."""
        self._registered.discard(self)
