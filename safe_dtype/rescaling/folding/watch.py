"""Who notices that a rescaled model is changed: told by its own modules, for nothing here is process-wide."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import RescaleError
from ...errors.warn import warn
from ...models.watched_modules import WatchedModules, watch_modules
from .fold import Fold


class Watch:
    """Has a fold follow as soon as a module with moved weights is wrapped or unwrapped.

    Waiting for the next call of the model would be too late: an adapter may be merged before there is one.
    """

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self.is_on = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave out that modules are watched: a pickled model has plain dicts."""
        return {**self.__dict__, "is_on": False}

    def attach(self) -> None:
        """Watch every module that holds others."""
        for module in self._fold.model.modules():
            if module._modules:
                watch_modules(module, self)
        self.is_on = True

    def before_module(self, modules: WatchedModules, name: str, module: nn.Module | None) -> None:
        """Let it happen: whether modules were wrapped shows afterwards."""

    def after_module(self, _module: nn.Module | None, /) -> None:
        """Follow a wrapper that came or went."""
        self.follow()

    def is_copied_in(self, memo: dict[int, Any]) -> bool:
        """Whether the whole model is being copied."""
        return id(self._fold.model) in memo

    def follow(self) -> None:
        """Follow what was wrapped or unwrapped; warn where that fails, for nothing is rescaled any more then."""
        if not self._fold.is_stale():
            return
        try:
            self._fold.follow()
        except RescaleError as exc:
            text = (
                f"{type(self._fold.model).__name__} is no longer rescaled: {exc.problem}. In float16 it may overflow"
            )
            warn(text)


class Entered:
    """A forward pre-hook on an inner model: one that was pickled is watched again from here on."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Watch it."""
        if not self._watch.is_on:
            self._watch.follow()
            self._watch.attach()
