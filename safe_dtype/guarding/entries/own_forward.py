"""A `forward` that an instance has of its own: Python finds it before that of the class, which is the one we wrap."""

from __future__ import annotations

import copy
import operator
import weakref
from typing import Any

import torch
from torch import nn

from ...models.wrapped_methods import Method, Wrap
from .entry_methods import FORWARD


class OwnForward:
    """The own `forward` of a guarded module: a hook of accelerate, a compiled form, a faster version that was put in.

    Asked for anything else it answers as what it stands for. A deep copy of the module gets one of its own; a pickled
    one gets back what was there, so that the file can be read where safe_dtype is not installed.
    """

    def __init__(self, module: nn.Module, forward: Method, wrap: Wrap) -> None:
        self._module, self._wrap = weakref.ref(module), wrap
        self.__wrapped__ = forward
        self._guarded = wrap(lambda _, /, *args, **kwargs: forward(*args, **kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it: a step, where it is no part of one."""
        # First, for a compiler follows this line and nothing else of ours.
        if torch.compiler.is_compiling() or (module := self._module()) is None:
            return self.__wrapped__(*args, **kwargs)
        return self._guarded(module, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # while it is being made
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = copy.deepcopy(self.__wrapped__, memo)
        module = memo.get(id(self._module()))
        return copied if module is None else OwnForward(module, copied, self._wrap)

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.getitem, ((self.__wrapped__,), 0)


def put_on_own(module: nn.Module, wrap: Wrap) -> None:
    """Wrap the `forward` that `module` has of its own, if any."""
    forward = module.__dict__.get(FORWARD)
    if callable(forward) and not isinstance(forward, OwnForward):
        module.__dict__[FORWARD] = OwnForward(module, forward, wrap)


def take_off_own(module: nn.Module) -> None:
    """Give `module` back the `forward` that it had of its own."""
    forward = module.__dict__.get(FORWARD)
    if isinstance(forward, OwnForward):
        module.__dict__[FORWARD] = forward.__wrapped__
