"""What a training step has counted in the Trainer itself, to be taken back where the step is run again.

Subclasses count in `training_step` and `compute_loss`: TRL's trainers append the metrics of every micro-batch to lists,
some count steps, some have a running mean of the loss, and some log rows. Of a step that failed nothing of it must stay.
What the Trainer's own loop counts between the micro-batches (floating point operations, tokens) is right as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_COUNTS = (int, float, bool, str, type(None))
_DEPTH = 3  # TRL: trainer._metrics["train"]["entropy"] is a list
_MOST_KEYS = 200
_SHORT = 16  # a list of so many entries may hold sums; a longer one is appended to
_SMALL = 1024  # numbers of a tensor
_OPAQUE = object()


class OwnCounters:
    """The numbers, texts, small tensors and containers of them that are attributes of a Trainer, as a window begins."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._at_start: dict[str, Any] | None = None
        self._changed: set[str] = set()
        self._logged: list[Any] = []  # rows

    def forget(self) -> None:
        """Begin a new window."""
        self._at_start = None
        self._changed.clear()
        self._logged.clear()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Take note of what the block changes."""
        attributes, rows = vars(self._owner), len(self._history())
        before = _marks(attributes)
        if self._at_start is None:
            self._at_start = before
            _copy_tensors(before)
        try:
            yield
        finally:
            self._logged += self._history()[rows:]
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
        if self._logged:
            logged = set(map(id, self._logged))  # and not those of the Trainer's loop in between
            self._history()[:] = [row for row in self._history() if id(row) not in logged]
            self._logged.clear()

    def _history(self) -> list[Any]:
        """Return the rows that were logged so far, by `self.log` in a step too."""
        history: list[Any] = getattr(getattr(self._owner, "state", None), "log_history", [])
        return history


@dataclass(frozen=True, slots=True)
class _Entries:
    """How many entries a list had, and the first of a short one."""

    length: int
    first: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Rolling:
    """All entries of a deque that drops the first where it is full."""

    entries: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rolling) and list(map(id, self.entries)) == list(map(id, other.entries))


@dataclass(slots=True, eq=False)
class _Tensor:
    """A tensor, and how often it had been written to."""

    tensor: torch.Tensor
    version: int
    values: torch.Tensor | None = None  # a copy, where one may be needed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tensor) and self.tensor is other.tensor and self.version == other.version

    def restored(self) -> torch.Tensor:
        """Return the tensor, with the values that it had."""
        if self.values is not None and self.tensor._version != self.version:
            with torch.no_grad():
                self.tensor.copy_(self.values)
            self.version = self.tensor._version
        return self.tensor


def _marks(attributes: dict[str, Any]) -> dict[str, Any]:
    marks = ((name, _mark(value, _DEPTH)) for name, value in list(attributes.items()))
    return {name: mark for name, mark in marks if mark is not _OPAQUE}


def _mark(value: Any, depth: int) -> Any:
    if isinstance(value, _COUNTS):
        return value
    if type(value) is torch.Tensor:
        # One with a graph would keep all of that alive.
        is_kept = value.numel() <= _SMALL and value.grad_fn is None and not value.is_meta and not value.is_inference()
        return _Tensor(value, value._version) if is_kept else _OPAQUE
    if isinstance(value, deque) and value.maxlen is not None and value.maxlen <= _SMALL:
        return _Rolling(tuple(value))
    if isinstance(value, (list, deque)):
        is_short = depth > 0 and len(value) <= _SHORT
        return _Entries(len(value), tuple(_mark(inner, depth - 1) for inner in value) if is_short else ())
    return _mark_of_keys(value, depth) if isinstance(value, (set, dict)) and len(value) <= _MOST_KEYS else _OPAQUE


def _mark_of_keys(value: set[Any] | dict[Any, Any], depth: int) -> Any:
    if isinstance(value, set):
        return frozenset(value)
    return {key: _mark(inner, depth - 1) for key, inner in value.items()} if depth > 0 else _OPAQUE


def _copy_tensors(mark: Any) -> None:
    """Copy the tensors that are marked: they may be written to."""
    if isinstance(mark, _Tensor):
        mark.values = mark.tensor.detach().clone()
    for inner in mark.values() if isinstance(mark, dict) else mark.first if isinstance(mark, _Entries) else ():
        _copy_tensors(inner)


def _restored(value: Any, mark: Any) -> Any:
    """Return `value` as it was when it had this mark, the same object where it is a container."""
    if isinstance(mark, _Tensor):
        return mark.restored()
    if isinstance(mark, _Rolling) and isinstance(value, deque):
        value.clear()
        value.extend(mark.entries)
    elif isinstance(mark, _Entries) and isinstance(value, (list, deque)):
        while len(value) > mark.length:
            value.pop()
        for place, inner in enumerate(mark.first[: len(value)]):
            value[place] = _restored(value[place], inner)
    elif isinstance(mark, frozenset) and isinstance(value, set):
        value.intersection_update(mark)
        value.update(mark)
    elif isinstance(mark, dict) and isinstance(value, dict):
        _restore_dict(value, mark)
    elif isinstance(mark, _COUNTS):
        return mark
    return value


def _restore_dict(value: dict[Any, Any], marks: dict[Any, Any]) -> None:
    for key in [key for key in value if key not in marks]:
        del value[key]
    for key, mark in marks.items():
        if mark is not _OPAQUE:
            value[key] = _restored(value.get(key), mark)  # `update` of a Counter would add
