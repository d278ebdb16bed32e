"""Everything that a step may change, remembered before it runs: caches, other states, random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from .cache_snapshot import CacheSnapshot

_STATE_LISTS = ("state", "mems", "past_buckets_states")  # rwkv, xlnet, reformer: lists written over in place
_STATE_NAMES = ("state", "states")
_PLAIN = frozenset({torch.Tensor, bool, int, float, str, type(None), tuple, list, dict})

Place = tuple[nn.Module, str]  # a module, and an attribute of it


class StepSnapshot:
    """The state before one call of the model."""

    __slots__ = ("_attributes", "_caches", "_lists", "_random", "resumable")

    def __init__(
        self, places: list[Place], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, random: bool = True
    ) -> None:
        self._caches: list[CacheSnapshot] = []
        self._lists: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.resumable = True
        for name, value in kwargs.items():
            if type(value) in _PLAIN:
                if name in _STATE_LISTS and isinstance(value, (list, tuple)):
                    self._lists += [(item, item.clone()) for item in value if isinstance(item, torch.Tensor)]
            elif isinstance(value, Cache):
                self._add(CacheSnapshot(value, kwargs))
            elif _keeps_state(value):
                self.resumable = False
        for value in args:
            if isinstance(value, Cache):
                self._add(CacheSnapshot(value, kwargs))
        self._attributes = [(module, name, *_with_copy(module.__dict__.get(name))) for module, name in places]
        self._random = _random_states() if random else []

    def _add(self, snapshot: CacheSnapshot) -> None:
        self._caches.append(snapshot)
        self.resumable = self.resumable and snapshot.known

    def roll_back(self) -> bool:
        """Bring everything back. False: something cannot be brought back, so the step cannot be run again."""
        done = [snapshot.roll_back() for snapshot in self._caches]  # all, whatever the first ones say
        for tensor, saved in self._lists:
            tensor.copy_(saved)
        for module, name, value, copied in self._attributes:
            module.__dict__[name] = value
            if copied is not None:
                value.copy_(copied)
        # A few models draw numbers in their forward, in inference too; they draw the same again.
        for generator, state in self._random:
            generator.set_state(state)
        return all(done) and self.resumable

    def drew(self) -> bool:
        """Whether random numbers have been drawn since."""
        changes = [generator.get_state() ^ state for generator, state in self._random]
        # A fake tensor does not tell.
        return any(type(change) is not torch.Tensor or bool(change.any()) for change in changes)


def state_places(model: nn.Module) -> list[Place]:
    """Return where the modules of `model` keep states as plain attributes, as Recurrent Gemma does beside the cache."""
    return [
        (module, name)
        for module in model.modules()
        for name, value in module.__dict__.items()
        if name.endswith(_STATE_NAMES) and (value is None or isinstance(value, torch.Tensor))
    ]


def _with_copy(value: Any) -> tuple[Any, torch.Tensor | None]:
    return value, value.clone() if isinstance(value, torch.Tensor) else None


def _keeps_state(value: Any) -> bool:
    """Whether an argument of an unknown class looks like a state that the step writes into."""
    return any(word in type(value).__name__ for word in ("Cache", "State", "Session"))


def _random_states() -> list[tuple[torch.Generator, torch.Tensor]]:
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators
    return [(generator, generator.get_state()) for generator in generators]
