"""The random numbers of the CPU and of every accelerator in use, brought back without waiting for any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

_Read = Callable[[], torch.Tensor]
_Set = Callable[[torch.Tensor], object]


class RandomStates:
    """The states of all default generators now, to be set again.

    All of them lie on the host: to read and to set them needs no device.
    """

    __slots__ = ("_states",)

    def __init__(self) -> None:
        self._states = [(read, set_again, read()) for read, set_again in _generators()]

    def set_again(self) -> None:
        """Have everything draw as it would have when the states were read."""
        for _, set_again, state in self._states:
            set_again(state)

    def have_moved(self) -> bool:
        """Whether numbers have been drawn since."""
        changes = [read() ^ state for read, _, state in self._states]
        # A fake tensor does not tell.
        return any(type(change) is not torch.Tensor or bool(change.any()) for change in changes)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Have the block leave no trace in random numbers, on whatever device it draws."""
    states = RandomStates()
    try:
        yield
    finally:
        states.set_again()


def _generators() -> Iterator[tuple[_Read, _Set]]:
    yield torch.default_generator.get_state, torch.default_generator.set_state
    for backend in _backends_in_use():
        if generators := getattr(backend, "default_generators", None):
            yield from ((generator.get_state, generator.set_state) for generator in generators)
        elif hasattr(backend, "get_rng_state") and hasattr(backend, "set_rng_state"):  # MPS, and some plugins
            yield from (_through(backend, index) for index in range(backend.device_count()))


def _through(backend: ModuleType, index: int) -> tuple[_Read, _Set]:
    return lambda: backend.get_rng_state(index), lambda state: backend.set_rng_state(state, index)


def _backends_in_use() -> Iterator[ModuleType]:
    """Yield torch's modules of accelerators that have begun to work; none is woken."""
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    for name in dict.fromkeys(("cuda", "xpu", *([current.type] if current is not None else []))):
        backend: ModuleType | None = getattr(torch, name, None)
        if backend is not None and getattr(backend, "is_initialized", lambda: True)():
            yield backend
