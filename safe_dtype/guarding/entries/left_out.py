"""Keep the guard's own code out of what a compiler makes of a model."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

import torch

from ...numerics import followed
from ...verifying import result_fields
from . import own_forward

_GUARDING = __package__.rpartition(".")[0]
# What is called from inside of a graph and passes on at once there.
_INSIDE = own_forward.__name__


@functools.cache
def leave_out_of_graphs() -> None:
    """Have `torch.compile` run the functions of the guard as they are, and compile the model that they call.

    A compiler that cannot follow a guarded model as a whole, because it fails while it is followed, runs it frame by frame,
    and would compile each function of the guard: hundreds, for nothing.
    """
    ours = [module for name, module in list(sys.modules.items()) if name.startswith(_GUARDING) and name != _INSIDE]
    for module in (*ours, followed, result_fields):
        for code in _codes_of(vars(module).values(), module.__name__):
            _skip(code)


def _skip(code: CodeType) -> None:
    """Do as `torch.compiler.disable(function, recursive=False)`, for which torch would import its compiler."""
    eval_frame: Any = torch._C._dynamo.eval_frame
    if hasattr(eval_frame, "skip_code"):  # of an older torch
        eval_frame.skip_code(code)
    else:
        action = eval_frame._FrameAction
        eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT))


def _codes_of(values: Iterable[Any], name: str) -> Iterator[CodeType]:
    """Yield the code of every function among `values` that the module of this name defines, and of what these define."""
    for value in values:
        inner = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        function = inspect.unwrap(inner) if callable(inner) else inner
        if isinstance(function, FunctionType) and function.__module__ == name:
            yield from _nested(function.__code__)
        elif isinstance(value, type) and value.__module__ == name:
            yield from _codes_of(vars(value).values(), name)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
