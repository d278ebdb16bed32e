"""The rehearsal device as tests see it: devices of host memory that count, refuse, slow down and get lost as told."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from torch_musa.cards import CARDS, MATRIX_PRODUCTS, NO_BFLOAT16_PRODUCT, Behaviour, Card

from safe_dtype.devices.accelerators import Hardware, accelerators


@dataclass(frozen=True)
class Counts:
    """What devices have done.

    Attributes:
        kernels: Operations and copies that were started.
        syncs: Times that the host waited for a result, or for everything (`synchronize`).
        uploads: Copies from the host that did not say `non_blocking`. CUDA waits for these too, with nothing to read.
    """

    kernels: int
    syncs: int
    uploads: int

    def __sub__(self, other: Counts) -> Counts:
        return Counts(self.kernels - other.kernels, self.syncs - other.syncs, self.uploads - other.uploads)


class Counting:
    """Counts of a block of code; read `counts` after it."""

    counts: Counts


class Rehearsal:
    """Two devices of 16 GiB, until a test asks for something else. `device=None` means all of them.

    Attributes:
        is_measured: Whether plans measure the devices (10 s) in place of taking recorded figures.
    """

    def __init__(self) -> None:
        self.is_measured = False
        self._library = torch.ops.rehearsal
        self._patch = pytest.MonkeyPatch()

    @property
    def backend(self) -> ModuleType:
        """The module that torch has for the device: `torch.musa`."""
        return torch.get_device_module(self.device().type)

    def device(self, index: int = 0) -> torch.device:
        """Return a device, for `to` and `device_map`."""
        return torch.device(torch.accelerator.current_accelerator().type, index)

    def set_devices(self, count: int) -> None:
        """Have this many devices."""
        self._library.set_device_count(count)
        self._forget_devices()

    def insert(self, card: str, device: int | None = None) -> None:
        """Let a device be a card of `CARDS`, with its name, memory, claims and faults."""
        for index in self._indices(device):
            self.backend.insert(CARDS[card], index)
        self._forget_devices()

    def limit(self, limit_bytes: int, device: int | None = None) -> None:
        """Let a device have this many bytes in all."""
        for index in self._indices(device):
            self._library.set_limit(index, limit_bytes)

    def leave_free(self, free_bytes: int, device: int | None = None) -> None:
        """Let a device have this many bytes more than are allocated on it now."""
        gc.collect()
        self.backend.empty_cache()
        for index in self._indices(device):
            self._library.set_limit(index, self._library.figure(index, "allocated") + free_bytes)

    def forbid(
        self,
        dtype: torch.dtype,
        ops: Iterable[str] = MATRIX_PRODUCTS,
        error: str = NO_BFLOAT16_PRODUCT,
        device: int | None = None,
    ) -> None:
        """Let operations ("mm", as torch.ops.aten names them) raise a RuntimeError where a tensor of `dtype` comes in."""
        self._misbehave(Behaviour(dtype, tuple(ops), error=error), device)

    def slow(
        self,
        dtype: torch.dtype,
        ops: Iterable[str] = MATRIX_PRODUCTS,
        *,
        seconds: float = 0.0,
        seconds_per_product: float = 0.0,
        device: int | None = None,
    ) -> None:
        """Let operations take longer: so much a call, and so much for each multiplication."""
        slow = Behaviour(dtype, tuple(ops), seconds=seconds, seconds_per_product=seconds_per_product)
        self._misbehave(slow, device)

    def spoil(
        self,
        dtype: torch.dtype,
        ops: Iterable[str] = MATRIX_PRODUCTS,
        factor: float = float("nan"),
        device: int | None = None,
    ) -> None:
        """Let operations give results that are wrong by a factor: NaN makes them NaN."""
        self._misbehave(Behaviour(dtype, tuple(ops), factor=factor), device)

    def refuse_allocation(self, after: int, device: int = 0) -> None:
        """Let a device have no memory for one allocation, when `after` more have been had; a second try has it."""
        self._library.refuse_after(device, after)

    def lose(self, device: int = 0, after: int = 0, error: str = "") -> None:
        """Lose a device when `after` more kernels have run: that and every later one raises torch.AcceleratorError.

        `error`: its text; a failed assertion of CUDA unless it is given.
        """
        self._library.lose_after(device, after, error)

    def card(self, device: int = 0) -> Card:
        """Return what a device is; without a name until one is inserted."""
        return self.backend.card_of(device)

    def hardware(self) -> tuple[Hardware, ...]:
        """Return the devices as the package is to see them: a card of NVIDIA as one, though a plugin brings it."""
        return tuple(
            replace(each, vendor=card.vendor, capability=".".join(map(str, card.capability)))
            for index, each in enumerate(accelerators())
            if (card := self.card(index))
        )

    def withhold(self, *names: str) -> None:
        """Have a backend without these functions, as those of plugins that lack some."""
        for owner, name in self._functions(names):
            self._patch.delattr(owner, name)
        self._forget_devices()

    def break_(self, *names: str) -> None:
        """Have a backend that has these functions, and cannot answer."""

        def cannot(*args: object, **kwargs: object) -> object:
            raise RuntimeError("The device doesn't support querying this")

        for owner, name in self._functions(names):
            self._patch.setattr(owner, name, cannot)
        self._forget_devices()

    def _functions(self, names: Iterable[str]) -> Iterator[tuple[ModuleType, str]]:
        for name in names:
            yield self.backend, name
            if name == "mem_get_info" and hasattr(torch.accelerator, "get_memory_info"):  # which asks the same
                yield torch.accelerator, "get_memory_info"

    def figure(self, name: str, device: int = 0) -> int:
        """Return a figure of the allocator in bytes: limit, allocated, reserved, peak_allocated, peak_reserved.

        Or "allocations": how many were asked for. Or "refusals": how often a lost device was asked for something, the
        kernel that lost it included.
        """
        return int(self._library.figure(device, name))

    def counts(self, device: int | None = None) -> Counts:
        """Return what has been counted since the test began."""
        totals = (
            sum(self._library.figure(index, name) for index in self._indices(device))
            for name in ("kernels", "syncs", "uploads")
        )
        return Counts(*totals)

    @contextmanager
    def counting(self, device: int | None = None) -> Iterator[Counting]:
        """Count a block: `with rehearsal.counting() as counting: ...`, then `counting.counts.syncs`."""
        counting, before = Counting(), self.counts(device)
        yield counting
        counting.counts = self.counts(device) - before

    def reset(self) -> None:
        """Be as at the beginning. What tensors hold stays allocated."""
        self._patch.undo()
        self.backend.reset()
        if any(self.figure("allocated", index) for index in self._indices(None)):
            gc.collect()
            self.backend.reset()
        self._forget_devices()

    def _misbehave(self, behaviour: Behaviour, device: int | None) -> None:
        for index in self._indices(device):
            self.backend.misbehave(behaviour, index)

    def _indices(self, device: int | None) -> Iterable[int]:
        return range(self._library.device_count()) if device is None else (device,)

    @staticmethod
    def _forget_devices() -> None:
        """What the package remembers of the hardware, which else never changes while a process runs."""
        accelerators.cache_clear()
