"""Methods of classes of transformers and torch, wrapped for as long as somebody needs them to be.

A class has one attribute for a method, and other libraries wrap it too, before us and after us. So a wrapper is taken out
only where the class still holds that very wrapper. Where somebody wrapped ours in turn, theirs stays, and ours passes
every call straight on to what was there before it; it goes when it comes to the top again, or takes over where a newer one of ours went with theirs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any
from weakref import WeakSet

from torch.compiler import is_dynamo_compiling

from .needed import Needed, changing, let_go

Method = Callable[..., Any]  # called with the instance, or for a class method the class, and then the arguments
Wrap = Callable[[Method], Method]

_MISSING = object()


class _Wrapper:
    """The wrapper in the place of one attribute of a class, and what was there before."""

    def __init__(self, owner: type, name: str, wrap: Wrap, *, packed: bool) -> None:
        self._owner, self._name = owner, name
        self.key = (owner, name, wrap)
        self._before = owner.__dict__.get(name, _MISSING)
        self._active = [True]  # emptied while it is retired
        self.needed = Needed(self._retire)
        self._ours = self._attribute(wrap, packed=packed)
        setattr(owner, name, self._ours)

    @property
    def is_active(self) -> bool:
        """Whether calls pass through what it was made to wrap, and not straight on to what was there before."""
        return bool(self._active)

    @property
    def is_on_top(self) -> bool:
        """Whether the class holds this wrapper, and nothing around it."""
        return self._owner.__dict__.get(self._name) is self._ours

    def remove(self) -> None:
        """Have the class hold what it held before; the wrapper is on top."""
        if self._before is _MISSING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)

    def take_over(self, users: Iterable[object]) -> None:
        """Be active again, for these objects: this wrapper was retired, and is on top."""
        self._active.append(True)
        self.needed = Needed(self._retire)
        for user in users:
            self.needed.add(user)

    def _retire(self) -> None:
        self._active.clear()
        _passing_on.add(self)
        _remove_retired()

    def _attribute(self, wrap: Wrap, *, packed: bool) -> Any:
        static = inspect.getattr_static(self._owner, self._name)
        original = self._original()
        method = wrap(_Inherited(self._owner, self._name) if self._before is _MISSING else original)
        wrapped = method if packed else _packing(method)
        active = self._active

        def pass_on(self_or_class: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.is_on_top:  # what was wrapped around it is gone
                with changing():
                    _remove_retired()
            return wrapped(self_or_class, args, kwargs) if active else original(self_or_class, *args, **kwargs)

        # A compiler makes variables of its own of all that stands in this function: functions and lists it knows.
        @functools.wraps(getattr(static, "__func__", static))
        def wrapper(self_or_class: Any, /, *args: Any, **kwargs: Any) -> Any:
            # First, for a compiler follows this line and nothing else of ours.
            if is_dynamo_compiling():
                return original(self_or_class, *args, **kwargs)
            return (wrapped if active else pass_on)(self_or_class, args, kwargs)

        return classmethod(wrapper) if isinstance(static, classmethod) else wrapper

    def _original(self) -> Method:
        owner, name, before = self._owner, self._name, self._before
        if isinstance(before, FunctionType):
            return before
        if before is _MISSING:
            # Looked up at every call: somebody may wrap the method of a base class in the meantime.
            return lambda self, /, *args, **kwargs: getattr(super(owner, self), name)(*args, **kwargs)
        if isinstance(before, classmethod):
            return lambda cls, /, *args, **kwargs: before.__get__(None, cls)(*args, **kwargs)
        # Some other object of another library's, found as Python finds it.
        get = getattr(type(before), "__get__", None)
        if get is None:
            return lambda _, /, *args, **kwargs: before(*args, **kwargs)
        return lambda self, /, *args, **kwargs: get(before, self, type(self))(*args, **kwargs)


class _Inherited:
    """A method that a class inherits, looked up at every call: somebody may wrap that of a base class in the meantime."""

    __slots__ = ("_name", "_owner")

    def __init__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __call__(self, self_or_class: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.__get__(self_or_class)(*args, **kwargs)

    def __get__(self, self_or_class: Any, _owner: Any = None) -> Any:
        return getattr(super(self._owner, self_or_class), self._name)


def _packing(method: Method) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]:
    return lambda self_or_class, args, kwargs: method(self_or_class, *args, **kwargs)


_wrappers: dict[tuple[type, str, Wrap], _Wrapper] = {}
_passing_on: WeakSet[_Wrapper] = WeakSet()  # retired, but another library's wrapper is around them


def wrap_method(owner: type, name: str, wrap: Wrap, user: object, *, packed: bool = False) -> None:
    """Wrap `owner.name` for as long as `user` lives, or another object that it was wrapped for.

    Args:
        owner: The class. It has the method, or inherits it.
        name: The name of a method or class method.
        wrap: Takes the method as a function of the instance (or class) and the arguments, and returns the function to
            call instead. The same `wrap` wraps a method only once.
        user: The object that needs it, referenced weakly. See `unwrap_methods`.
        packed: Whether what `wrap` returns takes the instance, a tuple and a dict: for what is called at every step, as
            passing a dict on as keywords copies it.
    """
    key = (owner, name, wrap)
    with changing():
        _remove_retired()
        wrapper = _wrappers.get(key)
        if wrapper is not None and wrapper.is_on_top:
            wrapper.needed.add(user)
            return
        # Somebody has wrapped or replaced our wrapper. A new one goes around theirs, which need not call ours.
        users = wrapper.needed.users() if wrapper is not None else []
        _wrappers[key] = fresh = _Wrapper(owner, name, wrap, packed=packed)
        for needing in (*users, user):
            fresh.needed.add(needing)
        if wrapper is not None:
            wrapper.needed.take_out()


def unwrap_methods(user: object) -> None:
    """Undo what was wrapped for `user` alone: each class has the very attributes that it had before."""
    let_go(user)


def owner_of(model_class: type, name: str) -> type | None:
    """Return the class in the line of `model_class` that defines `name`."""
    return next((base for base in model_class.__mro__ if name in base.__dict__), None)


def _remove_retired() -> None:
    for key, wrapper in list(_wrappers.items()):
        if not wrapper.is_active:
            _wrappers.pop(key, None)
    # Removing one may bring another to the top.
    while on_top := [wrapper for wrapper in list(_passing_on) if wrapper.is_on_top]:
        for wrapper in on_top:
            _passing_on.discard(wrapper)
            newer = _wrappers.get(wrapper.key)
            if newer is None:
                wrapper.remove()
                continue
            # Somebody put this one back, and with it took out the newer one around theirs.
            wrapper.take_over(newer.needed.users())
            _wrappers[wrapper.key] = wrapper
            newer.needed.take_out()
