"""What a forward pass changes in a model besides gradients, kept so that a failed one leaves no trace.

Running statistics of normalizations, and whatever else modules write into their buffers, or into parameters that are not
trained, while they compute.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_LARGEST_FIRST_COPY = 2**26  # bytes of all tensors that are copied before any window has shown which of them change


class ChangedWithoutCopyError(Exception):
    """A forward pass has changed what nobody knew that it would, and was too large to be copied."""


class KeptBuffers:
    """Copies of what the models' forward passes change, of the time when a window begins.

    Running statistics are copied for every window: torch's kernels change them unseen. Of all else that is no trained
    parameter, a first copy is made up to a limit, and a new one only of what has changed since.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        modules = {module: None for model in models for module in model.modules()}
        statistics = [
            buffer
            for module in modules
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
            if module.track_running_stats
        ]
        unseen = {id(buffer) for buffer in statistics}
        others = {
            id(tensor): tensor
            for module in modules
            for tensor in (*module.buffers(recurse=False), *module.parameters(recurse=False))
            if not tensor.requires_grad and id(tensor) not in unseen
        }
        self._statistics = statistics
        self._copied_statistics = [torch.empty_like(buffer) for buffer in statistics]
        self._others = list(others.values())
        self._versions = [tensor._version for tensor in self._others]
        self._copies: dict[int, torch.Tensor] = _first_copies(self._others)

    def keep(self) -> None:
        """Copy what has changed since the last time. A window begins."""
        if self._statistics:
            torch._foreach_copy_(self._copied_statistics, self._statistics)
        for place in self._changed():
            self._versions[place] = self._others[place]._version
            self._copies[place] = self._others[place].detach().clone()

    @torch.no_grad()
    def put_back(self) -> None:
        """Put everything back to what it was when the window began.

        Raises:
            ChangedWithoutCopyError: If there is no copy of something that has changed; the rest is put back.
        """
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._copied_statistics)
        changed = self._changed()
        for place in changed:
            if place in self._copies:
                self._others[place].copy_(self._copies[place])
                self._versions[place] = self._others[place]._version
        lost = [tuple(self._others[place].shape) for place in changed if place not in self._copies]
        if lost:
            raise ChangedWithoutCopyError(f"forward changes tensors that are not trained, of shape {lost[0]}")

    def _changed(self) -> list[int]:
        return [
            place
            for place, (tensor, version) in enumerate(zip(self._others, self._versions, strict=True))
            if tensor._version != version
        ]


def _first_copies(tensors: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    copies: dict[int, torch.Tensor] = {}
    room = _LARGEST_FIRST_COPY
    for place, tensor in sorted(enumerate(tensors), key=lambda item: item[1].numel() * item[1].itemsize):
        room -= tensor.numel() * tensor.itemsize
        if room < 0:
            break
        if not tensor.is_meta and tensor.layout is torch.strided:
            copies[place] = tensor.detach().clone()
    return copies
