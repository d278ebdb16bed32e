"""Many threads may run steps of one model at the same time; a change of the model waits for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ModelLock:
    """A lock that any number of steps hold together, or one change alone. A change that waits goes before new steps."""

    __slots__ = ("_changing", "_condition", "_lock", "_steps", "_waiting")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._steps = 0
        self._waiting = 0
        self._changing = False

    def begin_step(self) -> None:
        """Wait until nobody changes the model, then count as running."""
        with self._lock:
            while self._changing or self._waiting:
                self._condition.wait()
            self._steps += 1

    def end_step(self) -> None:
        """Count as running no more."""
        with self._lock:
            self._steps -= 1
            if self._waiting and not self._steps:
                self._condition.notify_all()

    @contextmanager
    def change(self) -> Iterator[None]:
        """Wait until no step runs, and keep new ones waiting meanwhile."""
        with self._condition:
            self._waiting += 1
            while self._steps or self._changing:
                self._condition.wait()
            self._waiting -= 1
            self._changing = True
        try:
            yield
        finally:
            with self._condition:
                self._changing = False
                self._condition.notify_all()
