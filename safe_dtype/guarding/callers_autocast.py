"""The autocast of the caller: around a call of the model, or put around its forward by another library.

`torch.autocast` decides in which dtype products are computed, whatever the dtype of the weights: what overflows under it
is no fault of theirs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import autocast

from ..models.wrapped_methods import unwrap_methods, wrap_method

_LONGEST_CHAIN = 16  # wrappers around wrappers


@dataclass(frozen=True, slots=True)
class CallersAutocast:
    """An autocast that somebody else turned on: for which type of device, to which dtype."""

    device_type: str
    dtype: torch.dtype
    inside: str = ""  # the module that opens it, as in `named_modules()`; empty: it is on around the call

    @property
    def owner(self) -> str:
        """Whose it is, in words."""
        return "the model's own" if self.inside else "the caller's"

    @property
    def place(self) -> str:
        """Where it is on, in words."""
        return f"in the forward of {self.inside}" if self.inside else "around this call"

    def __str__(self) -> str:
        return f"torch.autocast(dtype={str(self.dtype).removeprefix('torch.')})"

    def is_on(self) -> bool:
        """Whether it is on here, in this thread."""
        is_enabled = torch.is_autocast_enabled(self.device_type)
        return is_enabled and torch.get_autocast_dtype(self.device_type) == self.dtype


@dataclass(frozen=True, slots=True)
class AutocastOverride:
    """What is in force in the place of the caller's autocast: another dtype, or None: no autocast."""

    replaced: CallersAutocast
    dtype: torch.dtype | None

    def __str__(self) -> str:
        if self.dtype is None:
            return f"{self.replaced.owner} {self.replaced} turned off"
        return f"{self.replaced.owner} {self.replaced} in {str(self.dtype).removeprefix('torch.')}"

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Override it in the block, where it is on around the block and where it is turned on inside."""
        outer, _here.override = _here.override, self
        try:
            if self.replaced.is_on():
                # Its cache has weights in the dtype of the autocast around.
                with torch.autocast(
                    self.replaced.device_type, self.dtype, self.dtype is not None, cache_enabled=False
                ):
                    yield
            else:
                yield
        finally:
            _here.override = outer

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """As `in_force`, also where nobody keeps torch's class of autocasts wrapped."""
        trial = _Trial()
        wrap_method(autocast, "__enter__", overriding_enter, trial)
        try:
            with self.in_force():
                yield
        finally:
            unwrap_methods(trial)


class _Trial:
    """Needs torch's class of autocasts wrapped, for as long as it lasts."""


class _Here(threading.local):
    override: AutocastOverride | None = None  # in force in this thread


_here = _Here()


def overriding_enter(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `autocast.__enter__`: what an override replaces is not turned on inside of it."""

    def __enter__(self: autocast) -> Any:  # noqa: N807  (it is one)
        entered = original(self)
        override = _here.override
        if override is not None and override.replaced.device_type == self.device and override.replaced.is_on():
            torch.set_autocast_enabled(self.device, override.dtype is not None)
            torch.set_autocast_dtype(self.device, override.dtype or override.replaced.dtype)
            torch.set_autocast_cache_enabled(False)
        return entered

    return __enter__


def autocast_here(device_types: Iterable[str] = ()) -> CallersAutocast | None:
    """Return the autocast that is on in this thread, for one of these types of devices; None where none is.

    `device_types`: by default that of every device that is here.
    """
    if not device_types:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device_types = dict.fromkeys([*([accelerator.type] if accelerator is not None else []), "cuda", "cpu"])
    enabled = (device_type for device_type in device_types if torch.is_autocast_enabled(device_type))
    device_type = next(enabled, None)
    return CallersAutocast(device_type, torch.get_autocast_dtype(device_type)) if device_type is not None else None


def autocast_around(model: nn.Module) -> CallersAutocast | None:
    """Return the autocast that is on around this call, or around a forward in `model`; None where there is none."""
    types = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} - {"meta"}
    around = autocast_here(sorted(types))
    if around is not None:
        return around
    for module in model.modules():
        # Of classes, forward is the author's own business: it belongs to the model.
        if "forward" in module.__dict__:
            for context in _autocasts_of(module.__dict__["forward"]):
                if context._enabled and context.device in (types or {context.device}):
                    return CallersAutocast(context.device, context.fast_dtype)
    return None


def _autocasts_of(function: Any) -> Iterator[autocast]:
    """Yield the autocasts that a function was decorated with: accelerate and `@torch.autocast` do so."""
    for _ in range(_LONGEST_CHAIN):
        function = getattr(function, "__func__", function)
        if isinstance(function, FunctionType):
            for cell in function.__closure__ or ():
                if isinstance(cell.cell_contents, autocast):
                    yield cell.cell_contents
        function = getattr(function, "__wrapped__", None)
        if function is None:
            return
