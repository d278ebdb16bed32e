"""The calls of modules that were running when an exception was raised, with their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.utils import ModelOutput

from ..passing_hooks import hooked
from ..state import CALL
from .cache_copy import copy_of_cache

_LARGEST_COPY = 2**30  # bytes of an input that is copied when it comes in; of a larger one a reference is held

ChangeTensor = Callable[[torch.Tensor], torch.Tensor]


class CannotRepeatError(Exception):
    """A call cannot be repeated without changing what it was called with."""


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entry: str = CALL  # or the name of the method that was called

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module so, with other arguments."""
        called = self.module if self.entry == CALL else getattr(self.module, self.entry)
        return called(*args, **kwargs)

    def inputs(self, change: ChangeTensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return its arguments anew, each tensor put through `change`. Caches are copied, so that a run leaves them be.

        Raises:
            CannotRepeatError: If there is a state among them that cannot be copied.
        """
        layers = _layers_of(self.module)
        return changed(self.args, change, layers), changed(self.kwargs, change, layers)


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """A call of a module, and what it returned."""

    call: ModuleCall
    output: Any


@contextmanager
def finished_calls(modules: tuple[nn.Module, ...]) -> Iterator[list[FinishedCall]]:
    """Collect the calls of `modules`, by reference."""
    calls: list[FinishedCall] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():  # nothing of ours gets into the caller's graph
            calls.append(FinishedCall(ModuleCall(module, args, kwargs), output))

    with hooked(modules, after=keep):
        yield calls


def modules_in(model: nn.Module, traceback: TracebackType | None) -> list[nn.Module]:
    """Return the modules of `model` that were running when an exception was raised, innermost first."""
    members = set(model.modules())
    running: list[nn.Module] = []
    while traceback is not None:
        module = traceback.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in members and module not in running:
            running.insert(0, module)
        traceback = traceback.tb_next
    return running


def calls_in(model: nn.Module, traceback: TracebackType | None) -> list[ModuleCall]:
    """Return the calls that were running, innermost first, as far as their frames tell the inputs."""
    members = set(model.modules())
    calls: list[ModuleCall] = []
    while traceback is not None:
        frame = traceback.tb_frame
        module, args, kwargs = (frame.f_locals.get(name) for name in ("self", "args", "kwargs"))
        if frame.f_code.co_name == "_call_impl" and isinstance(module, nn.Module) and module in members:
            calls.insert(0, ModuleCall(module, args or (), kwargs or {}))
        traceback = traceback.tb_next
    return calls


@contextmanager
def captured_calls(modules: list[nn.Module]) -> Iterator[dict[nn.Module, ModuleCall]]:
    """Collect the latest call of each of `modules`: where an exception ends them, the call that failed."""
    calls: dict[nn.Module, ModuleCall] = {}

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls[module] = ModuleCall(module, _copied(args), _copied(kwargs))

    with hooked(modules, before=keep):
        yield calls


def changed(value: Any, change: ChangeTensor, layers: set[int]) -> Any:
    """Return `value` anew, each tensor in it put through `change`, caches copied.

    Args:
        value: Arguments of a call.
        change: What to do with every tensor.
        layers: The layers of a cache that are written into; empty: all.

    Raises:
        CannotRepeatError: If there is a state of an unknown class in it.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Cache):
        copied = copy_of_cache(value, change, layers)
        if copied is None:
            raise CannotRepeatError(f"a {type(value).__name__} cannot be copied")
        return copied
    if isinstance(value, ModelOutput):
        return type(value)(**{name: changed(part, change, layers) for name, part in value.items()})
    if isinstance(value, (tuple, list)):
        parts = [changed(part, change, layers) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if isinstance(value, dict):
        return type(value)({name: changed(part, change, layers) for name, part in value.items()})
    if any(word in type(value).__name__ for word in ("Cache", "State", "Session")):
        raise CannotRepeatError(f"a {type(value).__name__} cannot be copied")
    return value


def what_it_reads(module: nn.Module, value: Any) -> Any:
    """Return `value`, arguments of a call, with lists of the states that `module` reads in the place of caches.

    The layers of a cache that others read may hold what they have made of a failed call's numbers.
    """
    if isinstance(value, EncoderDecoderCache):
        return what_it_reads(module, [value.self_attention_cache, value.cross_attention_cache])
    if isinstance(value, Cache):
        layers = _layers_of(module)
        return [
            list(layer.__dict__.values()) for index, layer in enumerate(value.layers) if not layers or index in layers
        ]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [what_it_reads(module, part) for part in value]
    return value


def _copied(value: Any) -> Any:
    """Copy the tensors that a call reads, for it may write into them before it fails; states are copied when it runs."""
    if isinstance(value, torch.Tensor):
        small = not value.is_meta and value.numel() * value.itemsize <= _LARGEST_COPY
        return value.detach().clone() if small else value
    if type(value) in (tuple, list):
        return type(value)(_copied(part) for part in value)
    if type(value) is dict:
        return {name: _copied(part) for name, part in value.items()}
    return value


def _layers_of(module: nn.Module) -> set[int]:
    indices = {getattr(inner, "layer_idx", None) for inner in module.modules()}
    return {index for index in indices if isinstance(index, int)}
