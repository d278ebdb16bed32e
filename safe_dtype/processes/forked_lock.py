"""A lock of this process that a process forked from it can use, whatever threads had it at that time."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from weakref import WeakSet


class ForkedLock:
    """A re-entrant lock. In a forked process it is free, unless the thread that forked has it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> ForkedLock:
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def acquire_at_once(self) -> bool:
        """Take it, to be given back with `release`; False, without waiting, where another thread has it."""
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def forget_other_threads(self) -> None:
        """Be free where a thread has it that was not taken along into this process."""
        if self.acquire_at_once():
            self.release()
        else:
            self._lock = threading.RLock()


def _forget_other_threads() -> None:
    for lock in list(_locks):
        lock.forget_other_threads()


_locks: WeakSet[ForkedLock] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
