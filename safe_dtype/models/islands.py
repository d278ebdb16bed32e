"""Casts at the border of one module: a float32 island in a 16-bit model, or inputs brought to the weights' dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .casting import cast

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class CastInputs:
    """A forward pre-hook that casts the inputs of a module to the dtype of its weights."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Cast."""
        own = next(one.dtype for one in module.parameters() if one.is_floating_point())
        others = {dtype for dtype in _FLOATS if dtype != own}
        return cast(args, others, own), cast(dict(kwargs), others, own)


class Island:
    """Hooks of a module that computes in float32 inside a model in the dtype `outside`."""

    def __init__(self, outside: torch.dtype) -> None:
        self.outside = outside

    def attach(self, module: nn.Module) -> None:
        """Cast the inputs of `module` to float32, and its output to the dtype of the model around it."""
        module.register_forward_pre_hook(self.enter, with_kwargs=True, prepend=True)
        module.register_forward_hook(self)

    def detach(self, module: nn.Module) -> None:
        """Take the casts off again."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", hook) is self]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)

    def enter(self, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Cast the inputs."""
        return cast(args, {self.outside}, torch.float32), cast(dict(kwargs), {self.outside}, torch.float32)

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Cast the output."""
        return cast(output, {torch.float32}, self.outside)

    def outside_is_now(self, dtype: torch.dtype) -> None:
        """Follow the model into another dtype."""
        self.outside = dtype


def islands_in(model: nn.Module) -> Iterator[str]:
    """Yield the names of the modules of `model` that are islands."""
    for name, module in model.named_modules():
        if any(isinstance(hook, Island) for hook in module._forward_hooks.values()):
            yield name


def can_be_island(model: nn.Module, module: nn.Module) -> str | None:
    """Return why `module` cannot leave the dtype of `model`; None where it can."""
    if module is model:
        return "it is the whole model"
    own = {id(one) for one in module.parameters()}
    inside = {id(one) for one in module.modules()}
    for other in model.modules():
        if id(other) not in inside and own & {id(one) for one in other.parameters(recurse=False)}:
            return "its weights are tied to another module's"
    return None
