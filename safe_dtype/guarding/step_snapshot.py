"""Everything that a step may change, remembered before it runs: caches, states, inputs, random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from ..devices.random_states import RandomStates
from .cache_snapshot import CacheSnapshot
from .written.memo import UNBOUNDED, Room
from .written.written_places import (
    NOTHING,
    ROOM,
    InputMemo,
    ModelMemo,
    PlaceMemo,
    Versions,
    Written,
    WrittenPlace,
    is_newer,
)

STATE_LISTS = frozenset({"state", "mems", "past_buckets_states"})  # rwkv, xlnet, reformer: lists written over in place
_STATE_NAMES = ("state", "states")
_TENSOR = torch.Tensor
_PLAIN = frozenset({bool, int, float, str, type(None), tuple, list, dict})

Place = tuple[nn.Module, str]  # a module, and an attribute of it


class StepSnapshot:
    """The state before one call of the model.

    Args:
        places: Where modules keep states as plain attributes.
        args: The arguments of the call.
        kwargs: Its keyword arguments.
        module: What is called.
        written: What such calls were seen to write into; while that is not settled, everything is looked at.
    """

    __slots__ = (
        "_caches", "_generators", "_inputs", "_lists", "_model", "_places", "_random", "_versions", "_weights", "obstacle",
        "resumable",
    )  # fmt: skip

    def __init__(
        self, places: Sequence[Place], args: tuple[Any, ...], kwargs: Mapping[str, Any],
        module: nn.Module | None = None, written: Written = NOTHING,
    ) -> None:  # fmt: skip
        self._caches: list[CacheSnapshot] = []
        self._lists: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
        self._generators: tuple[tuple[torch.Generator, torch.Tensor], ...] = ()  # of the caller
        self.obstacle = ""  # why the last way back did not lead to the beginning
        self.resumable = True
        versions: Versions = []
        for name, value in kwargs.items():
            if type(value) is _TENSOR:
                if not value.is_inference():
                    versions.append((value, value._version))
            elif type(value) not in _PLAIN:
                self._add(value, kwargs)
            elif name in STATE_LISTS and isinstance(value, (list, tuple)):
                self._lists += tuple((item, item.clone()) for item in value if isinstance(item, torch.Tensor))
        if args:
            self._add_positional(args, kwargs, versions)
        self._model: ModelMemo | None = None
        self._places: Sequence[PlaceMemo] = ()
        is_new = module is not None and not written.is_settled
        room = Room(ROOM) if is_new or written.places else UNBOUNDED
        self._inputs: InputMemo | None = None
        if is_new or written.inputs:
            self._inputs = InputMemo(args, kwargs, None if is_new else written.inputs, room)
        self._versions = [] if is_new else versions  # of inputs; new ones are all in the memo
        if module is not None and is_new:
            self._model = ModelMemo(module, room)
        if places or written.places:  # nearly no model has any: not even a loop over nothing
            self._places = [
                *(PlaceMemo(WrittenPlace(*place, is_buffer=False), UNBOUNDED) for place in places),
                *(PlaceMemo(place, room if into else None) for place, into in written.places.items()),
            ]
        self._weights = written.weights
        self._random = RandomStates() if written.draws or not written.is_settled else None

    def _add_positional(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], versions: Versions) -> None:
        for value in args:
            if type(value) is _TENSOR and not value.is_inference():
                versions.append((value, value._version))
            elif isinstance(value, Cache):
                self._add(value, kwargs)

    def _add(self, value: Any, kwargs: Mapping[str, Any]) -> None:
        if isinstance(value, Cache):
            snapshot = CacheSnapshot(value, kwargs)
            self._caches.append(snapshot)
            self.resumable = self.resumable and snapshot.known
        elif isinstance(value, torch.Generator):
            self._generators += ((value, value.get_state()),)
        elif _keeps_state(value):
            self.resumable = False

    def roll_back(self, *, recast: bool = False) -> bool:
        """Bring everything back. False: something cannot be brought back, so the step cannot be run again.

        `recast`: the model has changed its dtype since. What it had as tensors comes back in the new one.
        """
        done = [snapshot.roll_back() for snapshot in self._caches]  # all, whatever the first ones say
        for tensor, saved in self._lists:
            tensor.copy_(saved)
        lost = [str(memo.place) for memo in self._places if not memo.bring_back(recast=recast)]
        lost += self._model.bring_back(recast=recast) if self._model is not None else self._weights
        if not self._bring_inputs_back():
            lost.append("an input")
        # A few models draw numbers in their forward, in inference too; they draw the same again.
        if self._random is not None:
            self._random.set_again()
        for generator, state in self._generators:
            generator.set_state(state)
        self.obstacle = f"it has written into {', '.join(lost[:3])}, of which there is no copy" if lost else ""
        return all(done) and self.resumable and not lost

    def _bring_inputs_back(self) -> bool:
        """Bring the inputs back. False: one was written into, and there is no copy of it."""
        memo = self._inputs
        if memo is None:
            return not is_newer(self._versions)
        done = memo.bring_back()  # all, whatever the others say
        return not is_newer(self._versions, memo.values()) and done

    def written(self) -> Written:
        """Return what has been written into since; everything was looked at."""
        assert self._model is not None
        assert self._inputs is not None
        return Written(
            self._model.written(), self._inputs.written(), tuple(self._model.written_weights()), self.drew()
        )  # fmt: skip

    def has_written_inputs(self) -> bool:
        """Whether arguments have been written into since, as far as they were looked at."""
        return is_newer(self._versions) or (self._inputs is not None and bool(self._inputs.written()))

    def drew(self) -> bool:
        """Whether random numbers have been drawn since, other than from the caller's own generators."""
        return self._random is not None and self._random.have_moved()


@contextmanager
def undone(module: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Bring back, after the block, whatever calls of `module` with these arguments have changed in it.

    For trials that run a module, or a model, and must leave no trace: buffers, attributes, inputs, caches, and random
    numbers are as they were. Loops over the module.
    """
    snapshot = StepSnapshot(state_places(module), args, kwargs or {}, module=module)
    try:
        yield
    finally:
        snapshot.roll_back()


def state_places(model: nn.Module) -> list[Place]:
    """Return where the modules of `model` keep states as plain attributes, as Recurrent Gemma does beside the cache."""
    return [
        (module, name)
        for module in model.modules()
        for name, value in module.__dict__.items()
        if name.endswith(_STATE_NAMES) and (value is None or isinstance(value, torch.Tensor))
    ]


def _keeps_state(value: Any) -> bool:
    """Whether an argument of an unknown class looks like a state that the step writes into."""
    return any(word in type(value).__name__ for word in ("Cache", "State", "Session"))
