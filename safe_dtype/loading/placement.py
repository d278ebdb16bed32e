"""Where `device_map` puts a model, and how much of one has room in these places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..devices import memory_of
from ..facts import CheckpointFacts, DeviceFacts, MemoryFacts
from .request import Request, device_name

PLACED = "device_map"  # what limits the memory of a model whose places the caller names
_MOVED = "the caller"  # ... that the caller moves to one device whole


def with_memory_as_placed(device: DeviceFacts, request: Request, checkpoint: CheckpointFacts) -> DeviceFacts:
    """Return `device` with the memory that the model has where the caller's `device_map` puts it.

    With "auto" and its like that is the memory of all accelerators: main memory and disk take what does not fit there,
    and every step waits for that. Where places are named, the one that is filled first decides: twice its free bytes, if
    half of the model's numbers go there.
    """
    device_map = request.arguments.get("device_map")
    if device_map is None and request.moved_to is not None:
        return replace(device, memory=replace(device.memory, limited_by=_MOVED))
    if device_map is None or request.spreads:
        return device
    if not isinstance(device_map, Mapping):
        return replace(device, memory=replace(device.memory, limited_by=PLACED))
    max_memory = request.arguments.get("max_memory")
    rooms = [
        _room(memory_of(place, max_memory), share)
        for place, share in _shares(device_map, checkpoint).items()
        if place != "disk"
    ]
    known = [room for room in rooms if room.total_bytes]
    return replace(device, memory=min(known, key=lambda room: room.free_bytes, default=MemoryFacts(0, 0, PLACED)))


def _shares(device_map: Mapping[str, Any], checkpoint: CheckpointFacts) -> dict[str, float]:
    """Return which part of the model's numbers goes to each place; all of them, where no name is one of the files'."""
    numbers: Counter[str] = Counter()
    for tensor in checkpoint.tensors:
        module = max((name for name in device_map if _is_in(tensor.name, name)), key=len, default=None)
        if module is not None:
            numbers[device_name(device_map[module])] += tensor.numel
    total = sum(numbers.values())
    if not total:  # transformers renames what it loads
        places = dict.fromkeys(device_name(place) for place in device_map.values())
        return dict.fromkeys(places, 1 / len(places)) if places else {}
    return {place: count / total for place, count in numbers.items()}


def _is_in(tensor: str, module: str) -> bool:
    return not module or tensor == module or tensor.startswith(f"{module}.")


def _room(memory: MemoryFacts, share: float) -> MemoryFacts:
    return MemoryFacts(int(memory.total_bytes / share), int(memory.free_bytes / share), PLACED)
