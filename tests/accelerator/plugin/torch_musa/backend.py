"""`torch.musa`: the module that torch, transformers and accelerate ask about the rehearsal device, as `torch.cuda`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from .cards import CARDS, UNNAMED, Behaviour, Card

Device = torch.device | str | int | None

_library = torch.ops.rehearsal
_cards: dict[int, Card] = {}
Event, Stream = torch.Event, torch.Stream


def insert(card: Card, index: int) -> None:
    """Let device `index` be this card: its name, its memory, its claims, and how its operations misbehave."""
    _cards[index] = card
    _library.set_limit(index, card.memory_bytes)
    for behaviour in card.behaviours:
        misbehave(behaviour, index)


def misbehave(behaviour: Behaviour, index: int) -> None:
    """Let operations of device `index` go wrong in this way."""
    numbers = (behaviour.factor, behaviour.seconds, behaviour.seconds_per_product)
    for op in behaviour.ops:
        _library.set_fault(index, op, behaviour.dtype, behaviour.error, *numbers)


def reset() -> None:
    """Be two unnamed devices of 16 GiB that refuse nothing; what is allocated stays so."""
    _cards.clear()
    _library.set_device_count(2)
    _library.reset()


def card_of(device: Device = None) -> Card:
    """Return the card that a device is."""
    return _cards.get(_index(device), UNNAMED)


def is_available() -> bool:
    """Whether there is a device."""
    return device_count() > 0


def is_initialized() -> bool:
    """Whether it can be used at once; always."""
    return True


def init() -> None:
    """Nothing is to be done first."""


_lazy_init = init


def _is_in_bad_fork() -> bool:
    return False


def is_current_stream_capturing() -> bool:
    """Whether a graph is captured; never."""
    return False


def device_count() -> int:
    """Return how many devices there are."""
    return int(_library.device_count())


def current_device() -> int:
    """Return the index of the device of this thread."""
    return torch.accelerator.current_device_index()


def set_device(device: Device) -> None:
    """Make `device` that of this thread."""
    torch.accelerator.set_device_index(_index(device))


@contextmanager
def _on(device: Device) -> Iterator[None]:
    before = current_device()
    set_device(device)
    try:
        yield
    finally:
        set_device(before)


device = _on  # after it, no signature of this module may mean torch's class by this name


def synchronize(device: Device = None) -> None:
    """Wait for the device; counted."""
    torch.accelerator.synchronize(_index(device))


def current_stream(device: Device = None) -> torch.Stream:
    """Return the stream in which operations of this thread run."""
    return torch.accelerator.current_stream(_index(device))


@contextmanager
def stream(stream: torch.Stream | None) -> Iterator[None]:
    """Run operations in `stream`, which here changes no order."""
    if stream is None:
        yield
        return
    before = current_stream(stream.device)
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before)


def get_device_name(device: Device = None) -> str:
    """Return the name of the card."""
    return card_of(device).name


def get_device_capability(device: Device = None) -> tuple[int, int]:
    """Return the card's compute capability."""
    return card_of(device).capability


def get_device_properties(device: Device = None) -> SimpleNamespace:
    """Return name, total_memory (bytes), major and minor."""
    major, minor = get_device_capability(device)
    total = _figure(device, "limit")
    return SimpleNamespace(name=get_device_name(device), total_memory=total, major=major, minor=minor)


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Return what torch would claim of the card, which may be untrue."""
    card = card_of()
    return card.claims_bfloat16 if including_emulation else card.claims_native_bfloat16


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return what `torch.autocast` may compute in."""
    return [torch.float16, torch.bfloat16]


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Return the bytes that are free and all of them; what is cached is not free."""
    free, total = torch.accelerator.get_memory_info(_index(device))
    return free, total


def memory_allocated(device: Device = None) -> int:
    """Return the bytes of all tensors."""
    return _figure(device, "allocated")


def memory_reserved(device: Device = None) -> int:
    """Return the bytes of all tensors and of the cache."""
    return _figure(device, "reserved")


def max_memory_allocated(device: Device = None) -> int:
    """Return the most bytes that tensors had at once since the last reset."""
    return _figure(device, "peak_allocated")


def max_memory_reserved(device: Device = None) -> int:
    """Return the most bytes that were reserved since the last reset."""
    return _figure(device, "peak_reserved")


def memory_stats(device: Device = None) -> dict[str, int]:
    """Return the statistics of the allocator under CUDA's names."""
    return dict(torch.accelerator.memory_stats(_index(device)))


def reset_peak_memory_stats(device: Device = None) -> None:
    """Begin new peaks with what is allocated."""
    torch.accelerator.reset_peak_memory_stats(_index(device))


def empty_cache() -> None:
    """Free what is reserved and not allocated, on every device."""
    torch.accelerator.empty_cache()


def get_rng_state(device: Device = None) -> torch.Tensor:
    """Return the state of the device's generator, on the host."""
    return _generator(device).get_state()


def set_rng_state(new_state: torch.Tensor, device: Device = None) -> None:
    """Set the state of the device's generator."""
    _generator(device).set_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    """Return the state of each device's generator."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(new_states: Iterable[torch.Tensor]) -> None:
    """Set the state of each device's generator."""
    for index, state in enumerate(new_states):
        set_rng_state(state, index)


def manual_seed(seed: int) -> None:
    """Seed the generator of the current device."""
    _generator(None).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed the generator of each device."""
    for index in range(device_count()):
        _generator(index).manual_seed(seed)


def initial_seed() -> int:
    """Return the seed of the current device's generator."""
    return _generator(None).initial_seed()


def seed() -> None:
    """Seed the current device's generator from the system."""
    _generator(None).seed()


def _generator(device: Device) -> torch.Generator:
    return _library.generator(_index(device))


def _figure(device: Device, name: str) -> int:
    return int(_library.figure(_index(device), name))


def _index(device: Device) -> int:
    if device is None:
        return current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_device() if index is None else index


default_generators = tuple(_library.generator(index) for index in range(device_count()))

# A process that a script starts has these cards, and no other device of the kind.
if _names := [name for name in os.environ.get("REHEARSAL_CARDS", "").split(",") if name]:
    _library.set_device_count(len(_names))
    for _index_of_card, _name in enumerate(_names):
        insert(CARDS[_name], _index_of_card)
