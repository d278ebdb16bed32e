"""Whether what was read from plain values is of the types that its class says. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_LARGEST_INTEGER = 2**63  # beyond it arithmetic with floats raises, and no count of ours is


def well_typed(value: T) -> T:
    """Return `value`, every dataclass in which, tuples of them too, has fields of the types that it says.

    Raises:
        TypeError: If one has not.
        ValueError: If a number is NaN, or an integer beyond 2**63.
    """
    if isinstance(value, str) or value is None:  # most of what is remembered
        return value
    if is_dataclass(value) and not isinstance(value, type):
        for name, hint in _hints(type(value)):
            inner = getattr(value, name)
            if not _is(inner, hint):
                raise TypeError(f"{type(value).__name__}.{name} is {inner!r:.40}")
            well_typed(inner)
    elif isinstance(value, tuple):
        for inner in value:
            well_typed(inner)
    elif isinstance(value, float) and math.isnan(value):
        raise ValueError("a number is NaN")
    elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise ValueError("a number has too many digits")
    return value


def listed(value: Any) -> tuple[Any, ...]:
    """Return the items of a JSON list.

    Raises:
        TypeError: If it is something else: a text has items too.
    """
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return tuple(value)


@cache
def _hints(dataclass: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(dataclass)
    return tuple((field.name, hints[field.name]) for field in fields(dataclass))


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _is(value: Any, hint: Any) -> bool:
    origin, inner = _parts(hint)
    if origin in (Union, UnionType):
        return any(_is(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        expected = [inner[0]] * len(value) if inner[-1:] == (...,) and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(expected) and all(map(_is, value, expected))
    if hint in (int, float):  # JSON writes 1.0 as well as 1; True is an int to Python
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, type(None) if hint is None else hint)
