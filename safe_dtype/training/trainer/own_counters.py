"""What a training step has counted in the Trainer itself, to be taken back where the step is run again.

Subclasses count in `training_step` and `compute_loss`: TRL's trainers append the metrics of every micro-batch to lists, and
some count steps. Of a step that failed nothing of it must stay. What the Trainer's own loop counts between the
micro-batches (floating point operations, tokens) is right as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_COUNTS = (int, float, bool, str, type(None))
_DEPTH = 3  # TRL: trainer._metrics["train"]["entropy"] is a list
_MOST_KEYS = 200
_OPAQUE = object()


class OwnCounters:
    """The numbers, texts and lists that are attributes of a Trainer, as they were when the window began."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._at_start: dict[str, Any] | None = None
        self._changed: set[str] = set()

    def forget(self) -> None:
        """Begin a new window."""
        self._at_start = None
        self._changed.clear()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Take note of what the block changes."""
        attributes = vars(self._owner)
        before = _marks(attributes)
        if self._at_start is None:
            self._at_start = before
        try:
            yield
        finally:
            after = _marks(attributes)
            self._changed |= {
                name for name in before.keys() | after.keys() if before.get(name, _OPAQUE) != after.get(name, _OPAQUE)
            }

    def take_back(self) -> None:
        """Undo what the blocks of this window have changed."""
        attributes, at_start = vars(self._owner), self._at_start or {}
        for name in self._changed:
            if name in at_start:
                attributes[name] = _restored(attributes.get(name), at_start[name])
            else:
                attributes.pop(name, None)
        self._changed.clear()


class _Length(int):
    """How many entries a list had."""


def _marks(attributes: dict[str, Any]) -> dict[str, Any]:
    marks = ((name, _mark(value, _DEPTH)) for name, value in list(attributes.items()))
    return {name: mark for name, mark in marks if mark is not _OPAQUE}


def _mark(value: Any, depth: int) -> Any:
    if isinstance(value, _COUNTS):
        return value
    if isinstance(value, (list, deque)):
        return _Length(len(value))
    if isinstance(value, dict) and depth > 0 and len(value) <= _MOST_KEYS:
        return {key: _mark(inner, depth - 1) for key, inner in value.items()}
    return _OPAQUE


def _restored(value: Any, mark: Any) -> Any:
    """Return `value` as it was when it had this mark, the same object where it is a container."""
    if isinstance(mark, _Length) and isinstance(value, (list, deque)):
        while len(value) > mark:
            value.pop()
        return value
    if isinstance(mark, dict) and isinstance(value, dict):
        for key in [key for key in value if key not in mark]:
            del value[key]
        value.update({key: _restored(value.get(key), inner) for key, inner in mark.items() if inner is not _OPAQUE})
        return value
    return value if isinstance(mark, (_Length, dict)) or mark is _OPAQUE else mark
