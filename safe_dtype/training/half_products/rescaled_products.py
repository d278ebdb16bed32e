"""The linear layers of a loop whose float16 products are scaled, and which of all would have to be."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...facts import FLOAT16
from ...ranks.fsdp2 import is_sharded
from .trained_linear import products_scaled, takes_scaled_products

_MOST_ROOM = 64  # where there are no gradients
_LIMIT = FLOAT16.largest / 4  # two bits before its end: numbers grow while a model is trained
logger = logging.getLogger(__name__)

_NUMBERS = ("output", "input", "of output", "of weight", "of bias", "of input")  # of a layer; those "of" are gradients
_PASSED = ("input", "of input")  # that other layers have computed, or go on from there to


@dataclass(frozen=True, slots=True)
class Overflow:
    """What an attempt has shown in which the products of all layers were scaled.

    Attributes:
        names: The layers that would have overflowed without that, or nearly so.
        room: By how many powers of two the loss may be scaled further before gradients of other layers do.
    """

    names: tuple[str, ...]
    room: int


class RescaledProducts:
    """The layers by their names, as `named_modules()` of the model inside of all wrappers has them.

    With several models a number stands before each: "1/head".
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = [model.module if isinstance(model, DistributedDataParallel) else model for model in models]
        self._is_sharded = any(map(is_sharded, models))
        self._scaled: dict[str, nn.Module] = {}
        self._ranges: dict[str, _Range] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The layers whose products are scaled, in order."""
        return tuple(self._scaled)

    @property
    def is_watching(self) -> bool:
        """Whether the next attempt scales all, to show which have to be."""
        return self._ranges is not None

    def can_be_scaled(self) -> bool:
        """Whether there are layers to scale: none in a model that is compiled, or whose weights ranks have shared out."""
        if self._is_sharded or any(map(_is_compiled, self._models)):
            return False
        return any(True for _ in self._layers())

    def scale(self, names: Iterable[str]) -> None:
        """Scale the products of these layers from the next attempt on, and of no others."""
        wanted = set(names)
        self._scaled = {name: layer for name, layer in self._layers() if name in wanted} if wanted else {}
        if unknown := sorted(wanted - self._scaled.keys()):
            logger.warning("no linear layers whose products can be scaled: %s", ", ".join(unknown))
        self._ranges = None

    def watch(self) -> None:
        """Scale the products of all layers in the next attempt, and take note of how large their numbers are."""
        self._ranges = {name: _Range() for name, _ in self._layers()}

    def watch_no_more(self) -> None:
        """Scale the products of those layers alone whose names are here."""
        self._ranges = None

    def in_force(self) -> AbstractContextManager[Any]:
        """Return the context of an attempt in float16. A layer that has come into the place of a scaled one is scaled too."""
        if any(self._layer(name) is not layer for name, layer in self._scaled.items()):
            ranges = self._ranges
            self.scale(self._scaled)
            self._ranges = ranges
        if self._ranges is not None:
            self.watch()  # anew: an attempt before it, with a larger loss scale, was not finite
            return products_scaled({layer: self._ranges[name].note for name, layer in self._layers()})
        return products_scaled(dict.fromkeys(self._scaled.values(), _say_nothing)) if self._scaled else nullcontext()

    def overflow(self, *, of_gradients: bool) -> Overflow:
        """Return what overflows in the attempt that was watched. Waits for the device.

        What a layer is given may have overflowed before it came there, between two layers of its block: all layers of the
        block are scaled then, for what they return is in float32.

        Args:
            of_gradients: Whether those count: not where a smaller loss scale may be enough for them.
        """
        sizes = self._sizes()
        counted = [number for number in _NUMBERS if of_gradients or not number.startswith("of")]
        names = set()
        for name, measured in sizes.items():
            large = {number for number in counted if measured[number] > _LIMIT}
            if large:
                names.add(name)
            if large & {*_PASSED}:
                names |= {other for other in sizes if other.startswith(self._block_of(name))}
        gradients = [
            size
            for name in sizes
            if name not in names
            for number, size in sizes[name].items()
            if number.startswith("of")
            and math.isfinite(size)  # else nobody has used it: gradients of weights are finite
        ]
        room = math.floor(math.log2(_LIMIT / max(gradients))) if gradients and max(gradients) > 0 else _MOST_ROOM
        return Overflow(tuple(name for name in sizes if name in names), room)

    def _sizes(self) -> dict[str, dict[str, float]]:
        """Return the largest number of each kind, of each layer."""
        ranges = self._ranges or {}
        nothing = torch.zeros((), device="cpu")
        tensors = [measured.largest.get(number, nothing) for measured in ranges.values() for number in _NUMBERS]
        flat = [float(tensor) for tensor in tensors]
        rows = zip(*[iter(flat)] * len(_NUMBERS), strict=True)
        return {name: dict(zip(_NUMBERS, row, strict=True)) for name, row in zip(ranges, rows, strict=True)}

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        for place, model in enumerate(self._models):
            for name, module in model.named_modules():
                if takes_scaled_products(module):
                    yield name if len(self._models) == 1 else f"{place}/{name}", module

    def _layer(self, name: str) -> nn.Module | None:
        """Return what is in the place of this name now; None where nothing is."""
        place, _, path = name.rpartition("/")
        try:
            return self._models[int(place or 0)].get_submodule(path)
        except AttributeError:
            return None

    def _block_of(self, name: str) -> str:
        """Return how the names of the layers begin that are in a block with this one: wrappers of adapters are none."""
        place, separator, path = name.rpartition("/")
        model = self._models[int(place or 0)]
        parent = path.rpartition(".")[0]
        while parent and hasattr(model.get_submodule(parent), "base_layer"):
            parent = parent.rpartition(".")[0]
        return f"{place}{separator}{parent}." if parent else name


class _Range:
    """The largest numbers of one layer, by what they are."""

    __slots__ = ("largest",)

    def __init__(self) -> None:
        self.largest: dict[str, Tensor] = {}

    def note(self, name: str, numbers: Tensor) -> None:
        """Take note of numbers. Nothing waits for a device."""
        size = numbers.detach().abs().amax().float()
        before = self.largest.get(name)
        self.largest[name] = size if before is None else torch.maximum(before, size)


def _say_nothing(_name: str, _numbers: Tensor) -> None:
    return


def _is_compiled(model: nn.Module) -> bool:
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
