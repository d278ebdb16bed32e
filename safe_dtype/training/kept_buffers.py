"""What a forward pass changes in a model besides gradients, kept so that a failed one leaves no trace.

Running statistics of normalizations, and whatever else modules write into their buffers, or into parameters that are not
trained, while they compute.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .kept_parameters import KeptParameters

_LARGEST_FIRST_COPY = 2**26  # bytes of all tensors that are copied before any window has shown which of them change
LARGEST_COPY = 2**22  # bytes of those buffers that are copied for every window
_COUNTS = (int, float, bool, str, type(None))


class ChangedWithoutCopyError(Exception):
    """A forward pass has changed what nobody knew that it would, and was too large to be copied."""


class KeptBuffers:
    """Copies of what the models' forward passes change, of the time when a window begins.

    Running statistics are copied for every window, and small buffers of numbers that have a fraction: torch's kernels
    change them unseen, and so do modules that write to `buffer.data` or put another tensor in the place of a buffer. Of
    all else that is no trained parameter, a first copy is made up to a limit, and a new one only of what has changed since.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        models = list(models)
        self._parameters = KeptParameters(models)
        modules = list({module: None for model in models for module in model.modules()})
        self._statistics = [
            buffer
            for module in modules
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
            if module.track_running_stats
        ]
        self._owners = [
            _Owner(module)
            for module in modules
            if not isinstance(module, _NormBase)
            and any(buffer is None or _may_run(buffer) for buffer in module._buffers.values())
        ]
        self._copy_unseen()
        unseen = {id(buffer) for buffer in self._unseen}
        others = {
            id(tensor): tensor
            for module in modules
            for tensor in (*module.buffers(recurse=False), *module.parameters(recurse=False))
            if not tensor.requires_grad and id(tensor) not in unseen
        }
        self._others = list(others.values())
        self._versions = [tensor._version for tensor in self._others]
        self._copies: dict[int, torch.Tensor] = _first_copies(self._others)

    def keep(self) -> None:
        """Copy what has changed since the last time. A window begins."""
        if sum(owner.keep() for owner in self._owners):
            self._copy_unseen()
        elif self._unseen:
            torch._foreach_copy_(self._copied_unseen, self._unseen)
        self._follow_replaced()
        for place in self._changed():
            self._versions[place] = self._others[place]._version
            self._copies[place] = self._others[place].detach().clone()

    def noticed(self) -> AbstractContextManager[None]:
        """Return the context of an attempt: what is replaced in it is noticed."""
        return self._parameters.noticed()

    @torch.no_grad()
    def put_back(self) -> None:
        """Put everything back to what it was when the window began.

        Raises:
            ChangedWithoutCopyError: If there is no copy of something that has changed; the rest is put back.
        """
        self._parameters.put_back()
        for owner in self._owners:
            owner.put_back()
        if self._unseen:
            torch._foreach_copy_(self._unseen, self._copied_unseen)
        changed = self._changed()
        for place in changed:
            if place in self._copies:
                self._others[place].copy_(self._copies[place])
                self._versions[place] = self._others[place]._version
        lost = [tuple(self._others[place].shape) for place in changed if place not in self._copies]
        if lost:
            raise ChangedWithoutCopyError(f"forward changes tensors that are not trained, of shape {lost[0]}")

    def _copy_unseen(self) -> None:
        """Copy what may be changed unseen, of the buffers that the modules have now."""
        buffers = {
            id(buffer): buffer
            for owner in self._owners
            for buffer in owner.buffers.values()
            if buffer is not None and _may_run(buffer)
        }
        for buffer in self._statistics:
            buffers.pop(id(buffer), None)
        self._unseen = [*self._statistics, *_smallest(buffers.values(), LARGEST_COPY)]
        self._copied_unseen = [buffer.detach().clone() for buffer in self._unseen]

    def _follow_replaced(self) -> None:
        """Look from here on at what has come into the place of a tensor."""
        for before, after in self._parameters.keep():
            for place in [place for place, tensor in enumerate(self._others) if tensor is before]:
                self._others[place], self._versions[place] = after, after._version
                if self._copies.pop(place, None) is not None:
                    self._copies[place] = after.detach().clone()

    def _changed(self) -> list[int]:
        return [
            place
            for place, (tensor, version) in enumerate(zip(self._others, self._versions, strict=True))
            if tensor._version != version
        ]


class _Owner:
    """A module with buffers, which of them it had when the window began, and what it had counted beside them."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.buffers: dict[str, torch.Tensor | None] = dict(module._buffers)
        self._counts = self._count()

    def keep(self) -> bool:
        """Take note of them; return whether there are others than before."""
        self._counts = self._count()
        before, self.buffers = self.buffers, dict(self._module._buffers)
        return not _are_the_same(before, self.buffers)

    def put_back(self) -> None:
        """Have the module be what it was."""
        if not _are_the_same(self._module._buffers, self.buffers):
            self._module._buffers.clear()
            self._module._buffers.update(self.buffers)
        vars(self._module).update(self._counts)

    def _count(self) -> dict[str, Any]:
        counts = {name: value for name, value in vars(self._module).items() if isinstance(value, _COUNTS)}
        del counts["training"]  # is the loop's
        return counts


def _are_the_same(some: dict[str, torch.Tensor | None], others: dict[str, torch.Tensor | None]) -> bool:
    return some.keys() == others.keys() and all(buffer is others[name] for name, buffer in some.items())


def _may_run(buffer: torch.Tensor) -> bool:
    """Whether it may hold what forward passes add up: a running mean, a count."""
    return (
        (buffer.is_floating_point() or buffer.is_complex() or buffer.numel() == 1)
        and not buffer.is_meta
        and buffer.layout is torch.strided
    )


def _smallest(tensors: Iterable[torch.Tensor], room: int) -> list[torch.Tensor]:
    """Return the smallest of `tensors`, as many as `room` bytes hold."""
    chosen = []
    for tensor in sorted(tensors, key=_bytes):
        room -= _bytes(tensor)
        if room < 0:
            break
        chosen.append(tensor)
    return chosen


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _first_copies(tensors: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    small = set(map(id, _smallest(tensors, _LARGEST_FIRST_COPY)))
    return {
        place: tensor.detach().clone()
        for place, tensor in enumerate(tensors)
        if id(tensor) in small and not tensor.is_meta and tensor.layout is torch.strided
    }
