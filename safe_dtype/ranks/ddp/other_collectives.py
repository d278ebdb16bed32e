"""Collectives in a window that are not those of the engine: a rank that failed cannot run them in the place of its program."""

from __future__ import annotations

from collections.abc import Callable

_PROBLEM = (
    "collectives that are not of DistributedDataParallel run in the window, and none can be run without its program"
)


class OtherCollectives:
    """Looks for collectives of the program, or of another model, between those of one engine.

    A group has a number for all its collectives. Where that has changed while the engine had none to run, others did.
    Where a program runs backward passes that nobody tells of, what is between two forward passes is the engine's.

    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count  # of all collectives of the group
        self._marked = 0
        self._is_in_backward = False
        self._may_reduce = False  # a backward pass may have run unseen since
        self._is_told = False  # backward passes are told of
        self._are_here = False  # in this window
        self._were_there = False  # in the last one that was whole

    @property
    def problem(self) -> str | None:
        """What there is in this window, or was in the one before; None: nothing that anybody has seen."""
        return _PROBLEM if self._are_here or self._were_there else None

    def mark(self) -> None:
        """Note that from here on the engine runs nothing."""
        self._marked, self._may_reduce, self._is_in_backward = self._count(), False, False

    def forward_ended(self) -> None:
        """Note that from here on the engine runs nothing but a backward pass."""
        self.mark()
        self._may_reduce = not self._is_told

    def backward_begins(self) -> None:
        """Look for others since the mark; from here on the engine reduces."""
        self._compare()
        self._is_in_backward = self._is_told = True

    def look(self) -> None:
        """Look for others since the mark."""
        if not self._may_reduce and not self._is_in_backward:
            self._compare()

    def end(self) -> None:
        """End a whole window."""
        self.look()
        self._were_there, self._are_here = self._are_here, False

    def _compare(self) -> None:
        if self._count() != self._marked:
            self._are_here = True
