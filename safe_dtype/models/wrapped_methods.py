"""Where the guard sits: methods of classes, wrapped while any instance of the class is guarded.

Every decoding strategy of transformers calls the model as `self(...)`, and no model class overrides `__call__`. An
instance's own `forward` would break `copy.deepcopy`, and a forward hook cannot swallow an exception.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch import nn

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

_MISSING = object()
_lock = threading.RLock()
_before: dict[tuple[type, str], Any] = {}  # what the class itself held under the name
_guarded: dict[tuple[type, str], WeakSet[nn.Module]] = {}


def wrap_method(owner: type, name: str, wrap: Wrap, model: nn.Module) -> None:
    """Wrap `owner.name` for as long as `model`, or another one it was wrapped for, needs it."""
    with _lock:
        key = (owner, name)
        if key not in _before:
            own = owner.__dict__.get(name, _MISSING)
            _before[key] = own
            _guarded[key] = WeakSet()
            setattr(owner, name, wrap(getattr(owner, name) if own is _MISSING else own))
        _guarded[key].add(model)


def unwrap_methods(model: nn.Module) -> None:
    """Let go of everything wrapped for `model`; what nobody else needs is as it was, object by object."""
    with _lock:
        for key, members in list(_guarded.items()):
            members.discard(model)
            if members:
                continue
            owner, name = key
            own = _before.pop(key)
            del _guarded[key]
            if own is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def owner_of(model_class: type, name: str) -> type | None:
    """Return the class in the line of `model_class` that defines `name`."""
    return next((one for one in model_class.__mro__ if name in one.__dict__), None)
