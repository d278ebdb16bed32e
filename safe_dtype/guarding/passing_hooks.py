"""Hooks of ours on modules for as long as something runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_OF_A_MODULE = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip

Hook = Callable[..., Any]


@contextmanager
def hooked(modules: Iterable[nn.Module], *, before: Hook | None = None, after: Hook | None = None) -> Iterator[None]:
    """Have each of `modules` call `before`, first of all its hooks, and `after`; both get its keyword arguments.

    Whatever ends the block, and whenever (an interrupt while they are put on, or taken off), none of them stays.
    """
    modules = list(modules)
    try:
        try:
            for module in modules:
                if before is not None:
                    module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
                if after is not None:
                    module.register_forward_hook(after, with_kwargs=True)
            yield
        finally:
            take_off(modules, before, after)
    except BaseException:  # it may have come while they were taken off
        take_off(modules, before, after)
        raise


def take_off(modules: Iterable[nn.Module], before: Hook | None, after: Hook | None) -> None:
    """Take the hooks `before` and `after` off."""
    # By what they are: of one that was interrupted while it was put on nobody holds a handle.
    for module in modules:
        ours = [key for hooks in (module._forward_pre_hooks, module._forward_hooks)
                for key, hook in list(hooks.items()) if hook is before or hook is after]  # fmt: skip
        for name in _OF_A_MODULE if ours else ():
            for key in ours:
                getattr(module, name).pop(key, None)
