"""Parameters that are not trained, and that forward passes replace or give other numbers: a teacher that follows, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

_WINDOWS_TO_LEARN = 3  # that show which parameters are given other numbers


class KeptParameters:
    """What was in the place of such parameters when a window began.

    `module.weight = nn.Parameter(...)` is noticed as it happens. `weight.data = ...` is not, and leaves the numbers of before
    where they are: a second reference to those is kept, after the first windows only of what they have shown to be
    exchanged so.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._modules = {module for model in models for module in model.modules()}
        self._replaced: dict[tuple[nn.Module, str], nn.Parameter] = {}  # in this window, by what was there before
        weights = {weight for module in self._modules for weight in module._parameters.values() if _is_frozen(weight)}
        self._numbers = {weight: weight.detach() for weight in weights if weight is not None}
        self._exchanged: set[nn.Parameter] = set()
        self._windows = 0

    def keep(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Begin a window; return what was replaced in the one before, and by what."""
        pairs = [(before, module._parameters[name]) for (module, name), before in self._replaced.items()]
        self._replaced.clear()
        changes = [(before, after) for before, after in pairs if after is not None and after is not before]
        if self._windows <= _WINDOWS_TO_LEARN:
            self._windows += 1
            self._exchanged |= {weight for weight, numbers in self._numbers.items() if _is_other(weight, numbers)}
            if self._windows > _WINDOWS_TO_LEARN:
                self._numbers = {weight: weight.detach() for weight in self._exchanged}
        for before, after in changes:
            if self._numbers.pop(before, None) is not None and _is_frozen(after):
                self._numbers[after] = after.detach()
                self._exchanged.add(after)
            self._exchanged.discard(before)
        for weight in self._exchanged:
            self._numbers[weight] = weight.detach()
        return changes

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Notice in the block which parameters are replaced."""
        handle: Any = register_module_parameter_registration_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def put_back(self) -> None:
        """Put everything back to what it was when the window began."""
        for (module, name), before in self._replaced.items():
            module._parameters[name] = before
        self._replaced.clear()
        for weight, numbers in self._numbers.items():
            if _is_other(weight, numbers):
                weight.data = numbers

    def _note(self, module: nn.Module, name: str, _parameter: nn.Parameter | None) -> None:
        before = module._parameters.get(name)
        if before is not None and module in self._modules:
            self._replaced.setdefault((module, name), before)


def _is_frozen(weight: nn.Parameter | None) -> bool:
    """Whether it is a parameter that is not trained, whose numbers lie in memory as torch has them."""
    return (
        type(weight) is nn.Parameter
        and not weight.requires_grad
        and not weight.is_meta
        and weight.layout is torch.strided
    )


def _is_other(weight: nn.Parameter, numbers: torch.Tensor) -> bool:
    return weight.data_ptr() != numbers.data_ptr()
