"""Many threads may run steps of one model at the same time; a change of the model waits for all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from weakref import WeakSet, ref

_LOOK_AGAIN = 0.05  # seconds; a thread that was interrupted while it let go may have told nobody


class Turn:
    """What a thread has while it runs a step, or waits for a change or makes one. The lock keeps which thread that is.

    The lock references it weakly: an exception of a signal may end a thread's step between any two lines, and what
    nobody has any more does not count.
    """

    __slots__ = ("__weakref__",)


Turns = dict[int, tuple[ref[Turn], int]]  # by the id of the turn: the turn, and the thread


class ModelLock:
    """A lock that any number of steps hold together, or one change alone. A change that waits goes before new steps.

    A thread may begin a step, or a change, inside its own. An exception while it waits leaves everything as it was, and
    in a forked process the steps and changes of threads that are not there any more do not count.
    """

    __slots__ = ("__weakref__", "_changes", "_condition", "_lock", "_steps")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._steps: Turns = {}
        self._changes: Turns = {}  # the first is made, unless it waits for steps; the others wait
        _locks.add(self)

    def begin_step(self, turn: Turn | None = None) -> Turn:
        """Wait until nobody changes the model, then count as running until `end_step`. With a turn, it is used again."""
        turn = turn or Turn()
        # First told, then looked; who changes the model is told first as well. So one of both sees the other, unlocked.
        self._steps[id(turn)] = ref(turn), get_ident()
        if self._changes:
            self._give_way(turn)
        return turn

    def end_step(self, turn: Turn) -> None:
        """Count as running no more."""
        self._steps.pop(id(turn), None)
        if self._changes:
            with self._lock:
                self._condition.notify_all()

    def end(self, turn: Turn) -> None:
        """Let go of all that `turn` has: an exception of a signal may have come before a step or a change did so itself."""
        self._changes.pop(id(turn), None)
        self.end_step(turn)

    @contextmanager
    def change(self, turn: Turn | None = None) -> Iterator[None]:
        """Wait until no step of another thread runs, and keep new ones waiting meanwhile."""
        turn = turn or Turn()
        try:
            with self._lock:
                self._changes[id(turn)] = ref(turn), get_ident()
                while not self._may_change(get_ident()):
                    self._condition.wait(_LOOK_AGAIN)
            yield
        finally:
            self._changes.pop(id(turn), None)
            with self._lock:
                self._condition.notify_all()

    def forget_other_threads(self) -> None:
        """Begin anew with what this thread has: the others were not taken along into this process."""
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        own = get_ident()
        for turns in (self._steps, self._changes):
            for number in [number for number, thread in _alive(turns) if thread != own]:
                del turns[number]

    def _give_way(self, turn: Turn) -> None:
        with self._lock:
            self._steps.pop(id(turn), None)
            self._condition.notify_all()  # a change may have seen it
            while self._changes and self._must_wait(get_ident()):
                self._condition.wait(_LOOK_AGAIN)
            self._steps[id(turn)] = ref(turn), get_ident()

    def _must_wait(self, thread: int) -> bool:
        changing = {changer for _, changer in _alive(self._changes)}
        # A change by another thread waits for a step that this thread is in already, or waits itself.
        return bool(changing) and thread not in changing and all(one != thread for _, one in _alive(self._steps))

    def _may_change(self, thread: int) -> bool:
        changing = [changer for _, changer in _alive(self._changes)]
        # A thread that waits to change the model inside its own step does not go on with that step meanwhile.
        running = {runner for _, runner in _alive(self._steps)} - {*changing}
        return changing[0] == thread and not running


def _alive(turns: Turns) -> list[tuple[int, int]]:
    """Return the turns that somebody still has, by number and thread, in their order."""
    alive = []
    for number, entry in list(turns.items()):
        turn, thread = entry
        if turn() is not None:
            alive.append((number, thread))
        elif turns.get(number) is entry:
            del turns[number]
    return alive


def _forget_other_threads() -> None:
    for lock in list(_locks):
        lock.forget_other_threads()


_locks: WeakSet[ModelLock] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
