"""Hooks of a module that computes without oneDNN."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from ...models.islands import hook_or_nothing
from ...numerics.onednn import SWITCH


class WithoutOneDNN:
    """Hooks of a module that computes without oneDNN."""

    def __init__(self) -> None:
        self._running = threading.local()
        self.entry = _Entry(self)

    @property
    def itself(self) -> WithoutOneDNN:
        """These hooks: what a pickle of them asks for."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return hook_or_nothing("WithoutOneDNN", module=__name__)

    def __deepcopy__(self, memo: dict[int, Any]) -> WithoutOneDNN:
        return memo.setdefault(id(self), WithoutOneDNN())  # type: ignore[no-any-return]

    def attach(self, module: nn.Module) -> None:
        """Turn it off before `module` runs, and back when it has, however it ends."""
        module.register_forward_pre_hook(self.entry, prepend=True)
        module.register_forward_hook(self, always_call=True)

    def detach(self, module: nn.Module) -> None:
        """Take the hooks off again."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (self, self.entry)]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)

    def enter(self) -> None:
        """Turn it off. An interrupt leaves torch's hooks out: what an earlier call has left turned off is turned back."""
        self.leave()
        SWITCH.turn_off()
        self._running.is_on = True

    def leave(self) -> None:
        """Turn it back."""
        if getattr(self._running, "is_on", False):
            self._running.is_on = False
            SWITCH.turn_back()

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Turn it back."""
        self.leave()


class _Entry:
    """The forward pre-hook."""

    def __init__(self, hooks: WithoutOneDNN) -> None:
        self._hooks = hooks

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        """Turn it off."""
        self._hooks.enter()

    @property
    def itself(self) -> _Entry:
        """This hook: what a pickle of it asks for."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return hook_or_nothing("entry_of", self._hooks, module=__name__)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Entry:
        return self._hooks.__deepcopy__(memo).entry


def entry_of(hooks: WithoutOneDNN) -> _Entry:
    """Return the forward pre-hook of `hooks`: what its pickle asks for."""
    return hooks.entry


def runs_without_onednn(module: nn.Module) -> bool:
    """Whether such hooks are on `module`."""
    return any(isinstance(hook, WithoutOneDNN) for hook in module._forward_hooks.values())
