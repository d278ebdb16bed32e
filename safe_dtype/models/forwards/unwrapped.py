"""The functions that transformers' own wrappers of forwards are around.

From 5.24 on, a forward is wrapped that takes its cache by an older name too. A layer is wrapped that may compute its
activations anew in the backward. Neither changes what a call computes in evaluation, by arguments of today's names.
"""

from __future__ import annotations

from functools import cache
from types import CodeType, FunctionType
from typing import Any

from transformers import modeling_layers
from transformers.utils import deprecation

_OLD_NAME = "old_name"


def without_old_names(forward: Any) -> Any:
    """Return the function that is called once arguments of older names have got their names of today."""
    return _inside(forward, _renaming())


def unwrapped(forward: Any) -> Any:
    """Return the function that is called in evaluation, inside of the wrappers of both kinds."""
    return _inside(forward, _renaming() | _checkpointing())


def old_names(forward: Any) -> frozenset[str]:
    """Return the names of arguments that wrappers replace: with one of these among its arguments a call is theirs."""
    names = set()
    while (inner := _inner(forward, _renaming() | _checkpointing())) is not None:
        cells = zip(forward.__code__.co_freevars, forward.__closure__ or (), strict=True)
        names |= {cell.cell_contents for name, cell in cells if name == _OLD_NAME}
        forward = inner
    return frozenset(names)


def _inside(forward: Any, wrappers: frozenset[CodeType]) -> Any:
    while (inner := _inner(forward, wrappers)) is not None:
        forward = inner
    return forward


def _inner(forward: Any, wrappers: frozenset[CodeType]) -> Any:
    is_wrapper = type(forward) is FunctionType and forward.__code__ in wrappers
    return getattr(forward, "__wrapped__", None) if is_wrapper else None


@cache
def _renaming() -> frozenset[CodeType]:
    return frozenset(one for one in _inner_codes(deprecation.deprecate_kwarg) if _OLD_NAME in one.co_freevars)


@cache
def _checkpointing() -> frozenset[CodeType]:
    subclass = modeling_layers.GradientCheckpointingLayer.__init_subclass__
    return frozenset(_inner_codes(getattr(subclass, "__func__", None)))


def _inner_codes(function: Any) -> list[CodeType]:
    """Return the code of every function that is made in a function, however deep."""
    codes: list[CodeType] = []
    pending = [code] if isinstance(code := getattr(function, "__code__", None), CodeType) else []
    while pending:
        inner = [one for one in pending.pop().co_consts if isinstance(one, CodeType)]
        codes += inner
        pending += inner
    return codes
