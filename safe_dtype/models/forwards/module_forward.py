"""A forward of a module's own in the place of its class's, with a value that it works with.

The module stays of torch's own class, `nn.Linear` or `nn.Embedding`, since libraries ask for exactly these (quantization
in torch, for one). What is put into its `__dict__` is found by its name only, and nobody finds it who goes through the
`__dict__`: copies, also those that are made by hand, are plain.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

_VALUE = "_safe_dtype_blocks"
_FORWARD = "forward"


class _Bound:
    """A function bound to a module, weakly, so that the module dies with its last user; in the place of its forward."""

    __slots__ = ("_module", "_own", "function")

    def __init__(self, function: Callable[..., Any], module: nn.Module, own: _Attributes) -> None:
        self.function, self._module, self._own = function, weakref.ref(module), weakref.ref(own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        # In a graph torch 2.6 takes any two dicts for different ones, and has no `gc`. There it stays the module that it was
        # bound to, as in newer ones, which ask `_Attributes` for the method of the class.
        if module is None or (module.__dict__ is not self._own() and not torch.compiler.is_compiling()):
            module = self._bound_anew(module)
        return self.function(module, *args, **kwargs)

    def _bound_anew(self, module: nn.Module | None) -> nn.Module:
        """Return the module that the `__dict__` with this method is of now: somebody has given it to another one."""
        own = self._own()
        owners = gc.get_referrers(own) if own is not None else ()
        owner = next((one for one in owners if isinstance(one, nn.Module) and one.__dict__ is own), module)
        if owner is None:
            raise ReferenceError("the module of this method is gone: keep it as long as its method")
        self._module = weakref.ref(owner)
        return owner

    # What asks a method for its module, its name or its signature finds those of the class's.

    @property
    def __self__(self) -> nn.Module | None:
        return self._module()

    @property
    def __name__(self) -> str:
        return _FORWARD

    @property
    def __func__(self) -> Any:
        return getattr(type(self._module()), _FORWARD)

    @property
    def __code__(self) -> Any:  # torch.export names the file
        return self.__func__.__code__

    @property
    def __wrapped__(self) -> Any:
        return self.of_class()

    @property
    def __globals__(self) -> Any:
        # Where torch.jit.script begins.
        text = "a module with its weight in blocks is not compiled from its source: script a copy.deepcopy of it"
        raise AttributeError(text)

    def of_class(self) -> Any:
        """Return the module's method that it stands for; None where the module is gone."""
        module = self._module()
        return None if module is None else MethodType(getattr(type(module), _FORWARD), module)


class _Attributes(dict[str, Any]):
    """The `__dict__` of a module, in which what was attached to it is found by its name only.

    Python looks attributes up in the dict itself. What goes through it (`update`, `dict`, `**`, copies and pickles) asks
    its methods, and finds the others, in a plain dict where it makes another.
    """

    __slots__ = ("__weakref__",)

    def copy(self) -> dict[str, Any]:
        """Return what would be in it if nothing had been attached."""
        others = {name: value for name, value in super().items() if not _is_attached(name, value)}
        # accelerate keeps the forward that its hooks are around.
        return {name: value.of_class() if type(value) is _Bound else value for name, value in others.items()}

    __copy__ = copy

    def __getitem__(self, name: str) -> Any:
        # torch.compile asks here for what to guard: of the class's method it is the function, one for all modules, while
        # what is no method is known by its identity, and each layer of a model compiled anew.
        value = super().__getitem__(name)
        return value.of_class() if type(value) is _Bound else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self.copy())

    def keys(self) -> Any:
        """Return the names."""
        return self.copy().keys()

    def values(self) -> Any:
        """Return the values."""
        return self.copy().values()

    def items(self) -> Any:
        """Return the others by name."""
        return self.copy().items()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.copy(), memo)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return dict, (self.copy(),)


def put_on(module: nn.Module, value: Any, forward: Callable[..., Any]) -> None:
    """Have `module` compute by `forward(module, ...)`, which finds `value` by `value_of`."""
    own = module.__dict__
    if type(own) is not _Attributes:
        own = _Attributes(own)
        object.__setattr__(module, "__dict__", own)
    own[_VALUE] = value
    own[_FORWARD] = _Bound(forward, module, own)


def take_off(module: nn.Module) -> bool:
    """Undo `put_on`; return whether there was anything to undo."""
    own = module.__dict__
    is_ours = type(own.get(_FORWARD)) is _Bound
    if is_ours:
        own.pop(_FORWARD, None)
    # A forward of ours that somebody else has wrapped stays inside of theirs, and calls that of the class.
    return own.pop(_VALUE, None) is not None or is_ours


def value_of(module: nn.Module) -> Any:
    """Return what the forward of `module` works with; None where it has none of its own, or has let it go."""
    return module.__dict__.get(_VALUE)


def has_forward(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether `module` computes by `forward(module, ...)` still, as `put_on` has it."""
    bound = module.__dict__.get(_FORWARD)
    return type(bound) is _Bound and bound.function is forward


def set_aside(module: nn.Module) -> Callable[[], None]:
    """Undo `put_on`, and return what does it again."""
    value, forward = value_of(module), module.__dict__.get(_FORWARD)
    take_off(module)

    def put_on_again() -> None:
        if value is not None and isinstance(forward, _Bound):
            put_on(module, value, forward.function)

    return put_on_again


def _is_attached(name: str, value: Any) -> bool:
    return name == _VALUE or (name == _FORWARD and type(value) is _Bound)
