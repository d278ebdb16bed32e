"""The tensors of a micro-batch, wherever in it they lie, and its rows: whether it can be run in parts, and these parts."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import torch

_SEQUENCES = (list, tuple)
_OF_ALL_ROWS = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a micro-batch: those in dicts, lists and tuples inside of it as well."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    parts = value if type(value) in _SEQUENCES else value.values() if hasattr(value, "keys") else ()
    for part in filter(_may_hold_tensors, parts):
        yield from tensors_in(part)


def with_tensors(value: Any, of_tensor: Callable[[torch.Tensor], Any]) -> Any:
    """Return a copy of `value`, and of all dicts, lists and tuples in it, with what `of_tensor` returns for each tensor."""
    if isinstance(value, torch.Tensor):
        return of_tensor(value)
    if type(value) in _SEQUENCES:
        return type(value)(with_tensors(inner, of_tensor) if _may_hold_tensors(inner) else inner for inner in value)
    copied = copy.copy(value)
    for name, inner in value.items() if hasattr(value, "keys") else ():
        if _may_hold_tensors(inner):
            copied[name] = with_tensors(inner, of_tensor)
    return copied


def rows_of(batch: Any) -> int:
    """Return the rows of the first tensor that has any; 1 where none has."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 1)


def first_rows(batch: Any, rows: int) -> Any:
    """Return the first rows of a micro-batch that `why_whole` says nothing of."""
    return with_tensors(batch, lambda tensor: tensor[:rows] if tensor.dim() else tensor)


def parts_of(batch: Any, parts: int) -> list[Any]:
    """Return the rows of a micro-batch that `why_whole` says nothing of in so many parts, all but the last of one size."""
    rows = rows_of(batch)
    size = -(-rows // parts)

    def part(start: int) -> Any:
        return with_tensors(batch, lambda tensor: tensor[start : start + size] if tensor.dim() else tensor)

    return [part(start) for start in range(0, rows, size)]


def why_whole(batch: Any) -> str:
    """Return why a micro-batch cannot be run in parts; nothing where it can.

    It can where all of its tensors have the same number of rows. Numbers, texts and tensors without dimensions are of all
    rows. Whatever else is in it (a list of texts, an array, an object) may have something for each row, or for all.
    """
    rows = {len(tensor) for tensor in tensors_in(batch) if tensor.dim()}
    if not rows:
        return "it has no tensors with rows"
    if len(rows) > 1:
        return f"its tensors have {min(rows)} to {max(rows)} rows"
    if rows == {1}:
        return "it has one row"
    return next(_unknown_in(batch, rows.pop()), "")


def _unknown_in(value: Any, rows: int, name: str = "it") -> Iterator[str]:
    """Yield what in `value` may or may not have one entry a row."""
    if isinstance(value, (torch.Tensor, *_OF_ALL_ROWS)):
        return
    if isinstance(value, (dict, UserDict)):
        for key, inner in value.items():
            yield from _unknown_in(inner, rows, f"{key!r}")
    elif type(value) not in _SEQUENCES or len(value) == rows:
        yield f"{name} is a {type(value).__name__} of which nobody knows what belongs to which row"
    else:
        for inner in value:
            if _may_hold_tensors(inner):
                yield from _unknown_in(inner, rows, name)
            else:
                yield f"{name} has a {type(inner).__name__} in it of which nobody knows what belongs to which row"


def _may_hold_tensors(value: Any) -> bool:
    """Whether it is a tensor, or what may hold some; anything else in a micro-batch is handed on as it is."""
    return isinstance(value, (torch.Tensor, dict, UserDict)) or type(value) in _SEQUENCES
