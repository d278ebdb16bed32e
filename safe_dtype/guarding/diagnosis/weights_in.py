"""Let a part of a model compute in another dtype for a moment: its parameters are copies meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...devices import memory_of
from ...models.forwards.module_forward import set_aside
from ...models.islands import Island
from ...models.quantized.coded_tensors import codes_in, shows_a_dtype
from ...models.recast import may_change
from ...models.shift_hooks import shift_of
from ..passing_hooks import take_off

_AT_ONCE = 2**26  # bytes of copies that are made together; of a larger part each module's when it runs
_SHARE = 0.5  # of the free bytes that copies may take

Undo = Callable[[], None]


class NoRoomError(Exception):
    """A module's weights cannot be copied into another dtype. Its text has both numbers of bytes."""


@contextmanager
def weights_in(module: nn.Module, former: set[torch.dtype], new: torch.dtype) -> Iterator[None]:
    """Have `module` compute in `new`. Its parameters, buffers, configs and hooks are the same objects again afterwards.

    Args:
        module: The whole model, or a part of it.
        former: Which dtypes to leave.
        new: The dtype of the copies. More of them than fit at once are made module by module, as each runs.

    Raises:
        NoRoomError: If a single module's weights do not fit.
    """
    swap = _Swap(former, new)
    try:
        if _fits(module, former, new, at_most=_AT_ONCE):
            for inner in module.modules():
                swap.enter(inner)
        else:
            for inner in module.modules():
                _require_room(inner, former, new)
                swap.enter_when_called(inner)
        swap.follow(module)
        yield
    finally:
        swap.leave()


class _Swap:
    """What was swapped, with the way back."""

    def __init__(self, former: set[torch.dtype], new: torch.dtype) -> None:
        self._former, self._new = former, new
        self._undo: list[Undo] = []
        self._copies: dict[int, torch.Tensor] = {}  # of tied weights there is one
        self._running: dict[nn.Module, list[int]] = {}

    def enter(self, module: nn.Module) -> None:
        """Swap the tensors that `module` itself has."""
        self._swap(module, self._copies, self._undo)

    def enter_when_called(self, module: nn.Module) -> None:
        """Swap them whenever it is called, and for as long."""
        undo: list[list[Undo]] = []

        def before(_module: nn.Module, _args: Any) -> None:
            swapped: list[Undo] = []
            undo.append(swapped)
            self._undo.append(lambda: _run_back(swapped))
            self._swap(module, {}, swapped)

        def after(_module: nn.Module, _args: Any, _output: Any) -> None:
            _run_back(undo.pop() if undo else [])

        self._undo.append(lambda: take_off([module], before, after))
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_hook(after, always_call=True)

    def follow(self, module: nn.Module) -> None:
        """Tell configs and hooks, which cast at borders."""
        for inner in module.modules():
            config = getattr(inner, "config", None)
            if getattr(config, "dtype", None) in self._former:
                self._undo.append(_setting_back(config, "dtype"))
                setattr(config, "dtype", self._new)  # noqa: B010  (of a foreign class)
            for hook in inner._forward_hooks.values():
                if isinstance(hook, Island):
                    self._undo.append(_setting_back(hook, "outside"))
                    hook.outside_is_now(self._new)
            shift = shift_of(inner)
            if shift is not None:
                self._undo.append(_setting_back(shift, "outside"))
                shift.outside_is_now(self._new)

    def leave(self) -> None:
        """Put everything back, also what a run that was interrupted has left."""
        for step in reversed(self._undo):
            step()
        self._undo.clear()
        self._copies.clear()

    def _swap(self, module: nn.Module, copies: dict[int, torch.Tensor], undo: list[Undo]) -> None:
        """Swap, and note in `undo` what takes each change back: before it is made, for an interrupt may come between."""
        undo.append(set_aside(module))
        with torch.inference_mode(mode=False), torch.no_grad():
            places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
            for tensors in places:
                for name, value in list(tensors.items()):
                    if not isinstance(value, torch.Tensor) or value.dtype not in self._former:
                        continue
                    if may_change(value) or shows_a_dtype(value):
                        if id(value) not in copies:
                            copies[id(value)] = self._copy(value)
                        undo.append(_putting_back(tensors, name))
                        tensors[name] = copies[id(value)]
        if getattr(module, "compute_dtype", None) in self._former:
            undo.append(_setting_back(module, "compute_dtype"))
            setattr(module, "compute_dtype", self._new)  # noqa: B010  (of a foreign class)

    def _copy(self, value: torch.Tensor) -> torch.Tensor:
        is_coded = shows_a_dtype(value)
        copied = codes_in(value, self._former, self._new) if is_coded else value.detach().to(self._new)
        return nn.Parameter(copied, requires_grad=False) if isinstance(value, nn.Parameter) else copied


def _run_back(undo: list[Undo]) -> None:
    for step in reversed(undo):
        step()


def _putting_back(place: Any, name: str) -> Undo:
    before = place[name]

    def undo() -> None:
        place[name] = before

    return undo


def _setting_back(owner: Any, name: str) -> Undo:
    before = getattr(owner, name)

    def undo() -> None:
        setattr(owner, name, before)

    return undo


def _fits(module: nn.Module, former: set[torch.dtype], new: torch.dtype, *, at_most: float) -> bool:
    for device, more in _needed(module, former, new).items():
        if more > at_most or not memory_of(str(device)).has_room_for(more / _SHARE):
            return False
    return True


def _require_room(module: nn.Module, former: set[torch.dtype], new: torch.dtype) -> None:
    for device, more in _needed(module, former, new, recurse=False).items():
        memory = memory_of(str(device))
        if not memory.has_room_for(more / _SHARE):
            raise NoRoomError(f"its copy takes {more:,} bytes on {device}, {memory.free_bytes:,} are free")


def _needed(
    module: nn.Module, former: set[torch.dtype], new: torch.dtype, *, recurse: bool = True
) -> dict[torch.device, int]:
    needed: dict[torch.device, int] = {}
    for weight in module.parameters(recurse=recurse):
        if weight.dtype in former and not weight.is_meta:
            needed[weight.device] = needed.get(weight.device, 0) + weight.numel() * new.itemsize
    return needed
