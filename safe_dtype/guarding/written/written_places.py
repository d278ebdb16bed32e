"""Which places of a model, and which of its inputs, a call writes into: buffers, attributes of modules, tensors.

Looking at all of them takes a loop over the model, so it is done for the first calls of each kind. Later calls save what
these were seen to write into, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from ...rescaling.folding.scaled_numbers import exponent_of, multiplied_number
from .memo import UNBOUNDED, Memo, Room, is_changeable, is_tensor, version_of

ROOM = 2**26  # bytes that are copied at most before a step, beside the inputs that it is known to write into

_OF_TORCH = frozenset(nn.Module().__dict__)
# Marks of what is put on a module once and stays: hooks of transformers and accelerate, what was compiled, our guard.
_OF_LIBRARIES = ("_compiled", "_hf_", "_old_forward", "_output_capturing", "_safe_dtype")
_MISSING = object()

Versions = list[tuple[torch.Tensor, int]]  # what counts the writes into a tensor, and where it stood
InputPath = tuple[int | str, ...]  # an argument by place or name, and the way to a tensor in it


@dataclass(frozen=True, slots=True)
class WrittenPlace:
    """An attribute or a buffer of a module that a call gives another value, or writes into."""

    module: nn.Module
    name: str
    is_buffer: bool

    @property
    def table(self) -> dict[str, Any]:
        """Where the module keeps it."""
        return self.module._buffers if self.is_buffer else self.module.__dict__

    def __str__(self) -> str:
        return f"{type(self.module).__name__}.{self.name}"


@dataclass(frozen=True, slots=True)
class Written:
    """What calls of one kind were seen to write into."""

    places: Mapping[WrittenPlace, bool]  # True: into the value itself, of which a copy is needed
    inputs: frozenset[InputPath]
    weights: tuple[str, ...]  # of which nobody keeps copies: such a call cannot be repeated
    draws: bool  # random numbers
    is_settled: bool = False  # the last call that was looked at showed nothing new

    @property
    def can_be_undone(self) -> bool:
        """Whether it is sure that nothing such a call writes into is lost, however large."""
        return self.is_settled and not self.weights and not any(self.places.values())

    def and_then(self, later: Written) -> Written:
        """Return what both calls were seen to write into; settled where the later one showed nothing new."""
        places = {place: into or self.places.get(place, False) for place, into in later.places.items()}
        both = Written(
            {**self.places, **places}, self.inputs | later.inputs, later.weights, self.draws or later.draws
        )  # fmt: skip
        return replace(both, is_settled=replace(self, is_settled=False) == both)


NOTHING = Written({}, frozenset(), (), draws=False)


class PlaceMemo:
    """What was in one place."""

    __slots__ = ("_exponent", "_memo", "_value", "place")

    def __init__(self, place: WrittenPlace, room: Room | None) -> None:
        self.place = place
        self._value = place.table.get(place.name, _MISSING)
        self._exponent = exponent_of(place.module, place.name)
        self._memo = Memo(self._value, room) if room is not None and is_changeable(self._value) else None

    def is_replaced(self) -> bool:
        """Whether something else is there now."""
        return self.place.table.get(self.place.name, _MISSING) is not self._value

    def is_written(self) -> bool:
        """Whether the value that was there has been written into."""
        return self._memo is not None and self._memo.is_changed()

    def is_turned(self) -> bool:
        """Whether it is a switch, and the other way round now."""
        return isinstance(self._value, bool) and self.place.table.get(self.place.name) is (not self._value)

    def bring_back(self, *, recast: bool) -> bool:
        """Put back what was there; where the model was `recast` since, in the dtype that it has now."""
        place, value = self.place, self._value
        done = self._memo is None or self._memo.bring_back()
        now = place.table.get(place.name, _MISSING)
        if now is value:
            return done
        if value is _MISSING:
            del place.table[place.name]
            return done
        # A rescale that came or went since is none of the step's: the number comes back in the scale of now.
        if more := exponent_of(place.module, place.name) - self._exponent:
            value = multiplied_number(value, more)
        both = isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and value.is_floating_point()
        place.table[place.name] = value.to(now.dtype) if both and recast and now.is_floating_point() else value
        return done


class ModelMemo:
    """What was in all places of a model; of large tensors, and of the weights, only whether they were written into."""

    __slots__ = ("_memos", "_names", "_weights")

    def __init__(self, model: nn.Module, room: Room) -> None:
        self._names = [(module, set(module.__dict__), set(module._buffers)) for module in model.modules()]
        places = (place for module, own, buffers in self._names for place in _places(module, own, buffers))
        self._memos = [PlaceMemo(place, room) for place in places]
        self._weights = [
            (name, weight, version)
            for name, weight in model.named_parameters()
            if is_tensor(weight) and (version := version_of(weight)) is not None
        ]

    def written(self) -> dict[WrittenPlace, bool]:
        """Return the places that have changed since, and whether their values were written into."""
        written = {memo.place: into for memo in self._memos if (into := memo.is_written()) or memo.is_replaced()}
        return written | dict.fromkeys(self._new_places(), False)

    def written_weights(self) -> list[str]:
        """Return the names of the weights that were written into."""
        return [name for name, weight, version in self._weights if version_of(weight) != version]

    def bring_back(self, *, recast: bool) -> list[str]:
        """Bring everything back, and return the names of what could not be."""
        weights = self.written_weights()
        # Weights that are written into while a switch is turned are prepared once (RWKV halves some): both stay so.
        switches = [memo for memo in self._memos if memo.is_turned()] if weights else []
        for place in self._new_places():
            del place.table[place.name]
        memos = [memo for memo in self._memos if memo not in switches]
        lost = [str(memo.place) for memo in memos if not memo.bring_back(recast=recast)]
        return lost if switches else lost + weights

    def _new_places(self) -> list[WrittenPlace]:
        return [
            place
            for module, own, buffers in self._names
            for place in _places(module, module.__dict__.keys() - own, module._buffers.keys() - buffers)
        ]


def _places(module: nn.Module, attributes: Iterable[str], buffers: Iterable[str]) -> Iterator[WrittenPlace]:
    for name in attributes:
        if name not in _OF_TORCH and not name.startswith(_OF_LIBRARIES):
            yield WrittenPlace(module, name, is_buffer=False)
    for name in buffers:
        yield WrittenPlace(module, name, is_buffer=True)


class InputMemo:
    """Copies of the tensors in the arguments of a call: of all of them, or of those at `paths` alone (None: of all)."""

    __slots__ = ("_memos",)

    def __init__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], paths: frozenset[InputPath] | None, room: Room
    ) -> None:
        own_room = room if paths is None else UNBOUNDED
        self._memos = {
            path: Memo(value, own_room, with_parts=False)
            for path, value in _inputs(args, kwargs)
            if paths is None or path in paths
        }

    def written(self) -> frozenset[InputPath]:
        """Return the paths of those that were written into since."""
        return frozenset(path for path, memo in self._memos.items() if memo.is_changed())

    def values(self) -> list[Any]:
        """Return the tensors and containers that it is of."""
        return [memo.value for memo in self._memos.values()]

    def bring_back(self) -> bool:
        """Bring all back. False: one was written into, and there is no copy of it."""
        done = [memo.bring_back() for memo in self._memos.values()]  # all, whatever the first ones say
        return all(done)


def is_newer(versions: Versions, but: Iterable[Any] = ()) -> bool:
    """Whether a tensor was written into since, of those that are not in `but`."""
    left_out = {id(value) for value in but}
    return any(version_of(tensor) != version for tensor, version in versions if id(tensor) not in left_out)


def hand_back(
    paths: frozenset[InputPath], before: tuple[Any, Mapping[str, Any]], now: tuple[Any, Mapping[str, Any]]
) -> None:
    """Write into the caller's own inputs what a call wrote into casts of them."""
    casts = dict(_inputs(*now))
    for path, own in _inputs(*before):
        if path in paths and is_tensor(own) and (cast := casts.get(path)) is not own and is_tensor(cast):
            with torch.no_grad():
                own.copy_(cast)


def _inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[InputPath, Any]]:
    """Yield the tensors and containers in the arguments, one level deep, and the way to each."""
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for name, value in arguments:
        if is_tensor(value):
            yield (name,), value
        elif isinstance(value, ModelOutput):
            yield from (((name, key), item) for key, item in value.items() if is_tensor(item))
        elif type(value) in (tuple, list, dict):
            if type(value) is not tuple:
                yield (name,), value
            inner: dict[int | str, Any] = value if isinstance(value, dict) else dict(enumerate(value))
            yield from (((name, key), item) for key, item in inner.items() if is_tensor(item))
