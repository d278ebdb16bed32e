"""The weights of a model once more, in float32: to run on while somebody trains the model's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

_NARROW = (torch.bfloat16, torch.float16)


@dataclass
class _Place:
    """Where a module holds a tensor of 16 bits, and the copy that stands in for it."""

    holder: dict[str, torch.Tensor | None]  # a module's own dict of parameters or buffers
    name: str
    state: tuple[int, int, int]  # of the tensor when it was copied: see `_state`
    copied: torch.Tensor


class Float32Copy:
    """A copy of what a model holds in 16 bits, tied weights once. The model's own tensors are never touched."""

    def __init__(self, model: nn.Module) -> None:
        copies: dict[int, torch.Tensor] = {}
        self._places = []
        for holder, name, tensor in _narrow_tensors(model):
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().float()
            self._places.append(_Place(holder, name, _state(tensor), copies[id(tensor)]))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have the modules find the copy in the block. What was trained since it was made is copied again."""
        own = [(place, place.holder[place.name]) for place in self._places]
        try:
            for place, tensor in own:
                if tensor is not None and (state := _state(tensor)) != place.state:
                    place.copied.copy_(tensor.detach())
                    place.state = state
                place.holder[place.name] = place.copied
            yield
        finally:
            for place, tensor in own:
                place.holder[place.name] = tensor


def bytes_of_copy(model: nn.Module) -> dict[torch.device, int]:
    """Return how many bytes a `Float32Copy` takes, by device; nothing where there is nothing in 16 bits."""
    sizes = {id(tensor): (tensor.device, 4 * tensor.numel()) for _, _, tensor in _narrow_tensors(model)}
    needed: Counter[torch.device] = Counter()
    for device, size in sizes.values():
        needed[device] += size
    return dict(needed)


def refuses_copy(model: nn.Module) -> str | None:
    """Return why a copy could not stand in for the weights; None where it can."""
    for _, name, tensor in _narrow_tensors(model):
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            return f"{name} is a {type(tensor).__name__}: weights that are sharded or quantized have no copy"
    return None


def _narrow_tensors(model: nn.Module) -> Iterator[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]]:
    for module in model.modules():
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is not None and tensor.dtype in _NARROW:
                    yield holder, name, tensor  # type: ignore[misc]  # parameters are tensors


def _state(tensor: torch.Tensor) -> tuple[int, int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version, tensor.data_ptr()
