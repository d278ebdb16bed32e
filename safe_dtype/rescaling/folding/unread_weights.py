"""What is being saved while a rescale is in force: it is made from the weights of now, when it is read."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet


class UnreadWeight(Protocol):
    """A weight that is made when it is read."""

    def keep(self) -> None:
        """Make it now."""


class UnreadWeights:
    """The weights that are being saved. Copied or pickled it is empty."""

    def __init__(self) -> None:
        self._weights: WeakSet[UnreadWeight] = WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return UnreadWeights, ()

    def add(self, weight: UnreadWeight) -> None:
        """Take one in, for as long as somebody may read it."""
        self._weights.add(weight)

    def keep(self) -> None:
        """Have all of them made now: what they are made from is about to change."""
        unread = list(self._weights)
        self._weights.clear()
        for weight in unread:
            weight.keep()
