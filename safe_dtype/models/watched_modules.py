"""The dicts of a module's sub-modules and parameters, telling a watcher of changes before they happen.

Torch's own hook on registration is process-wide, and a compiler traces into it, entries and all: where it comes or goes
meanwhile, the compilation fails. These belong to one model, and are read as plain dicts are.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from torch import nn

T = TypeVar("T")


class Watcher(Protocol):
    """Who is told of changes."""

    def before_module(self, modules: WatchedModules, name: str, module: nn.Module | None) -> None:
        """`module` is about to be put in at `name`; None: what is there is about to go."""

    def after_module(self, _module: nn.Module | None, /) -> None:
        """It was put in."""

    def before_parameter(self, name: str) -> None:
        """A parameter is about to go."""

    def is_copied_in(self, memo: dict[int, Any]) -> bool:
        """Whether a deep copy that is under way takes in the whole of what is watched, and so the watcher too."""


class _Watched(dict[str, T]):
    """A dict of a module while somebody watches: what is about to leave it is told. A pickled one is a plain dict."""

    __slots__ = ("watcher",)

    def __init__(self, items: Iterable[tuple[str, T]], watcher: Watcher | None) -> None:
        super().__init__(items)
        self.watcher = watcher

    @abstractmethod
    def tell_of_leaving(self, name: str) -> None:
        """Tell the watcher, if any, that what is at `name` is about to go."""

    def __delitem__(self, name: str) -> None:
        self.tell_of_leaving(name)
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        """Take one out."""
        self.tell_of_leaving(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, T]:
        """Take the last one out."""
        for name in list(self)[-1:]:
            self.tell_of_leaving(name)
        return super().popitem()

    def clear(self) -> None:
        """Take all out."""
        for name in self:
            self.tell_of_leaving(name)
        super().clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, T]:
        copied = type(self)((), None)
        memo[id(self)] = copied
        for name, item in self.items():
            copied[name] = copy.deepcopy(item, memo)
        if self.watcher is not None and self.watcher.is_copied_in(memo):
            copied.watcher = copy.deepcopy(self.watcher, memo)
        return copied

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())


class WatchedModules(_Watched[nn.Module | None]):
    """What a module has for `_modules` while somebody watches: what is put in is told as well."""

    __slots__ = ()

    def __setitem__(self, name: str, module: nn.Module | None) -> None:
        watcher = self.watcher
        if watcher is None or (name in self and self[name] is module):
            super().__setitem__(name, module)
            return
        watcher.before_module(self, name, module)
        super().__setitem__(name, module)
        watcher.after_module(module)

    def update(self, *others: Any, **more: Any) -> None:
        """Put several in."""
        for name, module in dict(*others, **more).items():
            self[name] = module

    def tell_of_leaving(self, name: str) -> None:
        """Tell that a module is about to go."""
        if self.watcher is not None and self.get(name) is not None:
            self.watcher.before_module(self, name, None)


class WatchedParameters(_Watched[nn.Parameter | None]):
    """What a module has for `_parameters` while somebody watches: what is put in is not told."""

    __slots__ = ()

    def tell_of_leaving(self, name: str) -> None:
        """Tell that a parameter is about to go."""
        if self.watcher is not None and self.get(name) is not None:
            self.watcher.before_parameter(name)


def watch_dicts(module: nn.Module, watcher: Watcher) -> None:
    """Have `watcher` told of every module that is put into `module` or leaves it, and of parameters that leave it."""
    own = module.__dict__
    modules, parameters = own["_modules"], own["_parameters"]
    if isinstance(modules, WatchedModules):
        modules.watcher = watcher
    else:
        own["_modules"] = WatchedModules(modules.items(), watcher)
    if isinstance(parameters, WatchedParameters):
        parameters.watcher = watcher
    else:
        own["_parameters"] = WatchedParameters(parameters.items(), watcher)


def watch_no_more(module: nn.Module) -> None:
    """Give `module` plain dicts again, if it has watched ones."""
    own = module.__dict__
    for name, watched in (("_modules", WatchedModules), ("_parameters", WatchedParameters)):
        if isinstance(own[name], watched):
            own[name] = dict(own[name])
