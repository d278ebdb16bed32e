"""A value as it was, and the way back there: a tensor, a list or a table that a step may write into."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Any

import torch
from torch import nn

from ...models.made_buffers import is_as_made

_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer)
_TABLES = (dict, OrderedDict)
_DEEPEST = 3  # containers in containers
_FEW = 1024  # numbers that are compared on a CPU although a version tells: `tensor.data` has none
# What libraries keep with a module is theirs to keep right. Quantizers prepare their codes in the first forward, a part of
# that in classes of tensors that are not looked into: put back by half, bitsandbytes takes codes for weights.
_LIBRARIES = frozenset(
    {
        *("accelerate", "logging", "peft", "safe_dtype", "threading", "torch", "transformers", "weakref"),
        *("bitsandbytes", "compressed_tensors", "gptqmodel", "hqq", "optimum", "torchao"),
    }
)


class Room:
    """How many bytes may still be copied."""

    __slots__ = ("_bytes",)

    def __init__(self, size: float) -> None:
        self._bytes = size

    def take(self, tensor: torch.Tensor) -> bool:
        """Whether there is room for a copy of `tensor`; it is taken then."""
        size = tensor.numel() * tensor.itemsize
        if size > self._bytes:
            return False
        self._bytes -= size
        return True


UNBOUNDED = Room(math.inf)  # for what is small, or has to be copied whatever its size


class Memo:
    """What one value is now, as far as there is `room` for copies of its tensors.

    `with_parts`: of a container, the tensors and containers in it too.
    """

    __slots__ = ("_copied", "_parts", "_shallow", "_version", "value")

    def __init__(self, value: Any, room: Room, *, with_parts: bool = True, depth: int = 0) -> None:
        self.value = value
        self._version: int | None = None
        self._copied: torch.Tensor | None = None
        self._shallow: Any = None
        self._parts: list[Memo] = []
        if is_tensor(value):
            self._version = version_of(value)
            self._copied = value.detach().clone() if room.take(value) else None
        elif (container := _container(value)) is not None and depth < _DEEPEST:
            self._shallow = container.copy()
            inner = () if not with_parts else container.values() if isinstance(container, dict) else container
            self._parts = [Memo(item, room, depth=depth + 1) for item in inner if is_changeable(item)]

    def is_changed(self) -> bool:
        """Whether it has been written into since. Compares numbers where no version tells."""
        value = self.value
        if is_tensor(value):
            if self._version is not None and version_of(value) != self._version:
                return True
            is_quick = value.numel() <= _FEW and value.device.type == "cpu"
            return self._copied is not None and (self._version is None or is_quick) and not _same(value, self._copied)
        if self._shallow is not None and not _same_items(_container(self.value), self._shallow):
            return True
        return any(part.is_changed() for part in self._parts)

    def bring_back(self) -> bool:
        """Write into it what was there. False: it was written into, and there is no copy."""
        if self._shallow is not None:
            _fill(_container(self.value), self._shallow)
        done = [part.bring_back() for part in self._parts]  # all, whatever the first ones say
        # What was left alone keeps its version: a graph of derivatives may rely on it.
        return all(done) and (not is_tensor(self.value) or not self.is_changed() or self._write_numbers_back())

    def _write_numbers_back(self) -> bool:
        value = self.value
        if self._copied is None or (value.requires_grad and not value.is_leaf):  # it is part of its derivative
            return False
        if value.dtype != self._copied.dtype and is_as_made(value, self._copied):
            return True  # a cast of the copy has fewer bits
        with torch.no_grad():
            if value.shape == self._copied.shape:
                value.copy_(self._copied)
            else:
                value.data = self._copied.clone()
        return True


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor that has a memory of its own to write into."""
    return type(value) in _TENSORS and value.layout is torch.strided and not value.is_meta


def version_of(tensor: torch.Tensor) -> int | None:
    """Return what counts the writes into a tensor; None for an inference tensor, whose numbers alone can tell."""
    return None if tensor.is_inference() else tensor._version


def is_changeable(value: Any) -> bool:
    """Whether something may be written into this value."""
    return is_tensor(value) or _container(value) is not None


def _container(value: Any) -> Any:
    """Return what holds the items of a container or the attributes of a plain object; None for anything else."""
    if type(value) in (list, set, deque, *_TABLES):
        return value
    if isinstance(value, (nn.Module, torch.Tensor, type)) or callable(value):
        return None
    attributes = getattr(value, "__dict__", None)
    library = type(value).__module__.partition(".")[0]
    return attributes if type(attributes) is dict and library not in _LIBRARIES else None


def _same(tensor: torch.Tensor, copied: torch.Tensor) -> bool:
    if type(copied) is not torch.Tensor:  # made under a mode whose tensors have no numbers
        return True
    if tensor.shape != copied.shape or tensor.dtype != copied.dtype or tensor.device != copied.device:
        return False
    same = tensor == copied
    if tensor.is_floating_point() or tensor.is_complex():
        same |= (tensor != tensor) & (copied != copied)  # NaN equals nothing
    return bool(same.all())


def _same_items(container: Any, before: Any) -> bool:
    if len(container) != len(before) or (isinstance(container, set) and container != before):
        return False
    if isinstance(container, dict):
        return all(
            name == other and container[name] is before[other] for name, other in zip(container, before, strict=True)
        )
    return isinstance(container, set) or all(item is other for item, other in zip(container, before, strict=True))


def _fill(container: Any, before: Any) -> None:
    if _same_items(container, before):
        return
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(before)
