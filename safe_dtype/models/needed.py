"""Changes of the whole process (a wrapper, a hook) that last as long as some object needs them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch._guards import CompileContext

from ..processes.forked_lock import ForkedLock

# The garbage collector may run a finalizer in the middle of a change, and with it another change in the same thread. The
# lock lets it: every step below leaves a state that another change can start from, and can be made twice.
_lock = ForkedLock()
_in_use: set[Needed] = set()
_somebody_died = False


class Needed:
    """A change of the process that is in force. It is undone when no object needs it any more.

    Those objects are referenced weakly: one that is garbage collected needs nothing.
    """

    def __init__(self, take_out: Callable[[], object]) -> None:
        self._take_out = take_out
        self._users: dict[int, weakref.ref[object]] = {}  # by the id of the reference
        self.is_out = False

    def add(self, user: object) -> None:
        """Keep it in force until `user` dies or calls `let_go`. To be called inside `changing()`."""
        if not any(needing is user for needing in self.users()):
            reference = weakref.ref(user, _user_died)
            self._users[id(reference)] = reference
        _in_use.add(self)

    def users(self) -> list[object]:
        """Return the objects that need it."""
        return [user for reference in list(self._users.values()) if (user := reference()) is not None]

    def discard(self, user: object) -> None:
        """Remove `user` and dead objects from those that need it."""
        # Nothing is made between two references of a list of values, so no object dies there that takes itself out.
        for reference in list(self._users.values()):
            if (needing := reference()) is None or needing is user:
                self._users.pop(id(reference), None)

    def take_out(self) -> None:
        """Undo it, even if objects still need it."""
        _in_use.discard(self)
        if not self.is_out:
            self.is_out = True
            self._take_out()


@contextmanager
def changing() -> Iterator[None]:
    """Keep other threads from making or undoing such changes while the block runs."""
    with _lock:
        yield
    if _somebody_died:  # while this thread had the lock
        _user_died()


def let_go(user: object) -> None:
    """Undo every change that only `user` needs."""
    with changing():
        _take_out_unneeded(user)


def share(user: object, other: object) -> None:
    """Keep every change that `user` needs in force for `other` too."""
    with changing():
        for needed in list(_in_use):
            if any(needing is user for needing in needed.users()):
                needed.add(other)


def _take_out_unneeded(user: object = None) -> None:
    for needed in list(_in_use):
        needed.discard(user)
        if not needed.users():
            needed.take_out()


class _AtNextCollection:
    """Refers to itself, so that only the garbage collector finds it, the next time it runs."""

    def __init__(self) -> None:
        self.itself = self
        weakref.finalize(self, _user_died).atexit = False


def _user_died(_: object = None) -> None:
    global _somebody_died
    # What torch.compile has seen must be there until it has built its guards: a hook that goes meanwhile fails it.
    if CompileContext.try_get() is not None:
        _AtNextCollection()
        return
    _somebody_died = True
    # The garbage collector runs this anywhere, so it must not wait for the lock: the thread that has it looks again.
    if _lock.acquire_at_once():
        try:
            _somebody_died = False
            _take_out_unneeded()
        finally:
            _lock.release()
