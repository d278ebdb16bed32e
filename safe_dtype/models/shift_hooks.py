"""Hooks that multiply the input or the output of one module by a power of two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class Shift:
    """Hooks on a module: multiply its first input by 2 ** input_exponent, and its output by 2 ** output_exponent.

    A norm between them computes in float32 inside a model in 16 bit: what it is given may leave float16's range once it
    is multiplied, and so may what it returns before it is.
    """

    def __init__(self) -> None:
        self.input_exponent = self.output_exponent = 0
        self.is_on_norm = False
        self.outside: torch.dtype | None = None  # of the model around, where the module itself is in float32
        self._raised = False  # its last input was in `outside`

    def attach(self, module: nn.Module) -> None:
        """Put the hooks on `module`, outermost."""
        self.is_on_norm = _is_small(module)
        module.register_forward_pre_hook(self.enter, with_kwargs=True, prepend=True)
        module.register_forward_hook(self)

    def detach(self, module: nn.Module) -> None:
        """Take them off again."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", hook) is self]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)

    @property
    def is_idle(self) -> bool:
        """Whether it multiplies nothing."""
        return not self.input_exponent and not self.output_exponent

    def enter(self, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Multiply the first floating tensor."""
        for place, value in enumerate(args):
            if _is_number(value):
                return (*args[:place], self._multiplied(value), *args[place + 1 :]), kwargs
        for name, value in kwargs.items():
            if _is_number(value):
                return args, {**kwargs, name: self._multiplied(value)}
        return args, kwargs

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Multiply what is returned; of several, the first."""
        if not _is_number(output):
            if not isinstance(output, (tuple, list)) or not output:
                return output
            parts = [self(_module, _args, output[0]), *output[1:]]
            return output._make(parts) if hasattr(output, "_make") else type(output)(parts)
        scaled = output * 2.0**self.output_exponent if self.output_exponent else output
        return scaled.to(self.outside) if self._raised and self.outside is not None else scaled

    def outside_is_now(self, dtype: torch.dtype) -> None:
        """Follow the model into another dtype, the norm itself being in float32."""
        self.outside = dtype if self.is_on_norm and dtype != torch.float32 else None

    def _multiplied(self, value: torch.Tensor) -> torch.Tensor:
        # Inside an island the input is in float32 already, and the output stays in it.
        self._raised = value.dtype == self.outside
        if self._raised:
            value = value.float()
        return value * 2.0**self.input_exponent if self.input_exponent else value


def shift_of(module: nn.Module) -> Shift | None:
    """Return the shift on `module`; None where there is none."""
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, Shift)), None)


def shift_on(module: nn.Module) -> Shift:
    """Return the shift on `module`, a new and idle one where there was none."""
    shift = shift_of(module)
    if shift is None:
        shift = Shift()
        shift.attach(module)
    return shift


def shifted_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Shift]]:
    """Yield every module of `model` with a shift on it, and its name."""
    for name, module in model.named_modules():
        if (shift := shift_of(module)) is not None:
            yield name, module, shift


def norms_in_float32(model: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters that stay in float32 when the model is in 16 bit."""
    for path, module, shift in shifted_modules(model):
        if shift.is_on_norm:
            yield from (f"{path}.{name}" for name, _ in module.named_parameters(recurse=False))


def _is_small(module: nn.Module) -> bool:
    """Whether this is a norm, or something of that size: no matrices in it, nor other modules."""
    return not any(True for _ in module.children()) and all(one.dim() <= 1 for one in module.parameters())


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def settle_norms(model: nn.Module, outside: torch.dtype) -> None:
    """Bring the norms with a shift into float32, inside a model that is in `outside`."""
    for _, module, shift in shifted_modules(model):
        if shift.is_on_norm:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
        shift.outside_is_now(outside)
