"""Fold a rescale into a model: multiply weights, eps and scaling numbers; hook a shift where that is impossible."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ...errors import RescaleError
from ...facts import Part, Rescale, Rows
from ...models.original_weights import Exponents, OriginalWeights
from ...models.shift_hooks import shift_on
from .scaled_numbers import forget_exponent, is_number_of, scale_number
from .stored_weights import stored_weight
from .underflow import Underflow, moved, moved_from, unmoved
from .unread_weights import UnreadWeights

logger = logging.getLogger(__name__)

Key = tuple[Part, str, Rows | None]

_BASE = "base_layer"  # where PEFT's tuners keep the module that they wrap
# What a wrapped module has to be: moving its input then moves its output.
_LINEAR = ("Linear", "Conv1D", "ScaledLinear", "ScaledConv1D")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a target is: attribute `name` of `owner`, the module at `path` without its wrappers."""

    path: str
    owner: nn.Module
    name: str


class _Seat:
    """What is at a path of the model: the module itself, or what was wrapped around it."""

    def __init__(self, model: nn.Module, path: str) -> None:
        parent, _, self._name = path.rpartition(".")
        self._parent = model.get_submodule(parent)
        self.module = model.get_submodule(path)

    @property
    def is_stale(self) -> bool:
        """Whether something else is there now."""
        return self._parent._modules.get(self._name) is not self.module

    @property
    def is_wrapper(self) -> bool:
        """Whether it is a wrapper."""
        return innermost(self.module) is not self.module


class Fold:
    """A rescale in force in a model. Everything it multiplies it can multiply back.

    A module that PEFT wraps gets its weight back as it was, and its wrapper a smaller input instead: what the adapter
    adds to the module's output shrinks with it then, and a merged weight is the one that the adapter was made for. One
    that is made anew from the weights themselves (PiSSA, DoRA's magnitudes) is brought into their size (`Watch`).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._done: dict[Key, int] = {}  # the exponents in force
        self._seats: dict[str, _Seat] = {}  # by the path of a module with moved weights
        self._lost: dict[str, Underflow] = {}  # by the name of a moved weight
        self.rescale = Rescale(())
        self.loaded = Rescale(())  # what was in force when the weights were brought into the dtype that they are in
        self.changes = 0  # how often something else was brought into force
        self.unread = UnreadWeights()

    def move_to(self, rescale: Rescale) -> None:
        """Bring `rescale` into force instead of what is now.

        In float16 small weights lose bits. Those are kept, on the CPU, and a later `move_to` starts from them: whatever
        was in force in between, a weight that is moved is rounded once, and one that is not is what it was, bit for bit.

        Whatever ends it midway (a device without room for a weight's copy, an interrupt), nothing has changed.

        Raises:
            RescaleError: If the model has not what the rescale names, or it names one weight twice.
        """
        wanted = rescale.exponents()
        changes = {
            key: exponent
            for key in {**self._done, **wanted}
            if (exponent := wanted.get(key, 0) - self._done.get(key, 0))
        }
        places = {key: self._place(key) for key in changes}
        _check_ties(places)
        for (part, target, rows), place in places.items():
            if part is Part.WEIGHT:
                _check_wrapper(target, self.model.get_submodule(place.path), place, rows)
        self.unread.keep()
        with (
            _disable_current_modes(), torch.inference_mode(mode=False), torch.no_grad(),
            OriginalWeights(self.model) as original, _all_or_nothing() as way_back,
        ):  # fmt: skip
            for key, exponent in changes.items():
                if key[0] is not Part.WEIGHT or self._is_wrapped(places[key]):
                    self._multiply(key, places[key], exponent)
                    way_back.append(functools.partial(self._multiply, key, places[key], -exponent))
            before, after = _by_weight(self._done), _by_weight(wanted)
            weights = {key[1]: place for key, place in places.items() if key[0] is Part.WEIGHT}
            for target, place in weights.items():
                if not self._is_wrapped(place):
                    was, will_be = before.get(target, {}), after.get(target, {})
                    move = functools.partial(self._move_weight, target, place.owner, original=original)
                    move(was, will_be)
                    way_back.append(functools.partial(move, will_be, was, in_place=True))
        self._done = wanted
        self.rescale = rescale
        self.changes += 1
        paths = {target.rpartition(".")[0] for part, target, _ in wanted if part is Part.WEIGHT}
        self._seats = {path: _Seat(self.model, path) for path in paths}

    def undo(self) -> None:
        """Multiply everything back."""
        self.move_to(Rescale(()))

    def moved(self) -> dict[str, dict[Rows | None, int]]:
        """Return by which exponents rows of each moved parameter are multiplied now; None as rows is all of it.

        Parameters of wrapped modules are not among them: they have their own values.
        """
        by_weight = _by_weight(self._done)
        return {target: one for target, one in by_weight.items() if not self._moves_input(target)}

    def moved_weights(self) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
        """Yield the name of each moved parameter, the module that holds it, its name there, and the parameter."""
        for target in self.moved():
            path, _, name = target.rpartition(".")
            owner = innermost(self.model.get_submodule(path))
            if (weight := owner._parameters.get(name)) is not None:
                yield target, owner, name, weight

    def moved_numbers(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Yield the name of each moved number, the module that holds it, and its name there."""
        for part, target, _ in self._done:
            if part is Part.NUMBER:
                path, _, name = target.rpartition(".")
                yield target, innermost(self.model.get_submodule(path)), name

    def shifted(self, path: str) -> dict[Part, int]:
        """Return by which exponents the input and the output of the module at `path` are multiplied."""
        return {part: exponent for (part, target, _), exponent in self._done.items()
                if target == path and part in (Part.INPUT, Part.OUTPUT)}  # fmt: skip

    def reaches(self, path: str) -> bool:
        """Whether the module at `path` itself computes with anything that is moved."""
        return any(target in (path, f"{path}.{target.rpartition('.')[2]}") for _, target, _ in self._done)

    def leave(self, targets: Collection[str]) -> None:
        """Take these weights and numbers for what they are now: nothing multiplies them back any more."""
        for target, owner, name in self.moved_numbers():
            if target in targets:
                forget_exponent(owner, name)
        self._done = {key: exponent for key, exponent in self._done.items() if key[1] not in targets}
        for target in targets:
            self._lost.pop(target, None)

    def unmoved(self, name: str, weight: Tensor, exponents: Exponents) -> Tensor:
        """Return the moved parameter `name`, whose value is `weight`, as it is without the rescale: in float32.

        Bit for bit, also where it lost bits in float16. `exponents` are those of `moved`.
        """
        return unmoved(weight, exponents, self._lost.get(name))

    def own(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield those of these names that are moved parameters, each with what it is without the rescale: in its dtype.

        Bit for bit what it would be if it had been loaded without.
        """
        moves = self.moved()
        with OriginalWeights(self.model) as original:
            for target, _, _, weight in self.moved_weights():
                if target in names:
                    stored = self._stored(target, weight.detach(), moves[target], original)
                    own = self.unmoved(target, weight, moves[target]) if stored is None else stored
                    yield target, own.to(weight)

    def losses(self) -> dict[str, float]:
        """Return what each moved weight has lost in float16, where it has: RMS of the loss over that of the weight."""
        return {name: lost.error for name, lost in self._lost.items()}

    def is_stale(self) -> bool:
        """Whether modules with moved weights were wrapped or unwrapped since."""
        return any(seat.is_stale for seat in self._seats.values())

    def follow(self) -> None:
        """Follow what was wrapped or unwrapped since.

        Raises:
            RescaleError: If a wrapper cannot be followed. Nothing is rescaled any more then.
        """
        self.unread.keep()
        before, rescale = dict(self._seats), self.rescale
        changed = [path for path, seat in before.items() if seat.is_stale]
        # First undo the moves of changed modules, as they were done; then move anew, with the modules of now.
        with torch.inference_mode(mode=False), torch.no_grad(), OriginalWeights(self.model) as original:
            for target, exponents in _by_weight(self._done).items():
                path = target.rpartition(".")[0]
                if path in changed:
                    self._move_back(target, exponents, before[path], original)
        unchanged = {key: exponent for key, exponent in self._done.items()
                if not (key[0] is Part.WEIGHT and key[1].rpartition(".")[0] in changed)}  # fmt: skip
        self._done, self._seats = unchanged, {}
        try:
            self.move_to(rescale)
        except RescaleError:
            self._undo_what_is_left()
            raise
        logger.info("%s follows %d modules that were wrapped or unwrapped", rescale, len(changed))

    def _undo_what_is_left(self) -> None:
        self._seats = {}
        self.undo()

    def _move_back(self, target: str, exponents: Exponents, seat: _Seat, original: OriginalWeights) -> None:
        path, _, name = target.rpartition(".")
        if seat.is_wrapper and name == "weight":
            _shift(seat.module, Part.INPUT, -sum(exponents.values()))
            return
        lost = self._lost.get(target)
        for module in _holders(self.model.get_submodule(path), name):
            weight: Any = module._parameters[name]
            stored = self._stored(target, weight.data, exponents, original)
            weight.data = moved(weight.data, exponents, {}, lost)[0] if stored is None else stored.to(weight.data)
        self._lost.pop(target, None)

    def _move_weight(
        self, target: str, owner: nn.Module, before: Exponents, after: Exponents, original: OriginalWeights,
        *, in_place: bool = False,
    ) -> None:  # fmt: skip
        """Multiply a weight by `after` in place of `before`; `in_place` takes no memory of the device for that."""
        weight: Any = owner._parameters[target.rpartition(".")[2]]
        present = weight.data.cpu() if in_place else weight.data
        stored = self._stored(target, present, before, original)
        lost = self._lost.get(target)
        if stored is not None and not after:
            product, lost = stored.to(present), None
        elif stored is not None:  # rounded once, whatever was in force in between
            product, lost = moved_from(stored.float(), after, present)
        else:
            product, lost = moved(present, before, after, lost)
        if in_place and not weight.is_cpu and not weight.is_inference():
            weight.data.copy_(product)
        else:
            weight.data = product.to(weight.data)
        self._lost.pop(target, None)
        if lost is not None:
            self._lost[target] = lost

    def _stored(self, target: str, weight: Tensor, exponents: Exponents, original: OriginalWeights) -> Tensor | None:
        """Return what the file holds for a moved weight that lost bits when it was loaded; None where it has changed."""
        then = _by_weight(self.loaded.exponents()).get(target)
        if weight.dtype != torch.float16 or not then:
            return None
        return stored_weight(original, target, self.unmoved(target, weight, exponents), weight.dtype, then)

    def _is_wrapped(self, place: _Place) -> bool:
        return place.name == "weight" and self.model.get_submodule(place.path) is not place.owner

    def _moves_input(self, target: str) -> bool:
        path, _, name = target.rpartition(".")
        seat = self._seats.get(path)
        return name == "weight" and seat is not None and seat.is_wrapper

    def _place(self, key: Key) -> _Place:
        part, target, rows = key
        path, _, name = (target, "", "") if part in (Part.INPUT, Part.OUTPUT) else target.rpartition(".")
        try:
            owner = self.model.get_submodule(path)
        except AttributeError as exc:
            raise RescaleError(f"{type(self.model).__name__} has no {target}") from exc
        if part in (Part.WEIGHT, Part.NUMBER):
            seat, owner = owner, innermost(owner)
        if part is Part.NUMBER and not is_number_of(owner, name):
            raise RescaleError(f"{target} is no number")
        if part is Part.WEIGHT:
            if hasattr(seat, "modules_to_save"):
                raise RescaleError(f"an adapter brings a weight of its own for {target}")
            weight = owner._parameters.get(name)
            if weight is None:
                raise RescaleError(f"{target} is no parameter")
            _check_weight(target, weight, rows)
        return _Place(path, owner, name)

    def _multiply(self, key: Key, place: _Place, exponent: int) -> None:
        part = key[0]
        if part is Part.NUMBER:
            scale_number(place.owner, place.name, exponent)
        elif part is Part.WEIGHT:  # of a wrapped module
            _shift(self.model.get_submodule(place.path), Part.INPUT, exponent)
        else:
            _shift(place.owner, part, exponent)


@contextmanager
def _all_or_nothing() -> Iterator[list[Callable[[], None]]]:
    """Give a list for the ways back of what is done in the block; whatever ends it early, they are gone, latest first."""
    way_back: list[Callable[[], None]] = []
    try:
        yield way_back
    except BaseException:
        for undo in reversed(way_back):
            undo()
        raise


def _shift(module: nn.Module, part: Part, exponent: int) -> None:
    shift = shift_on(module)
    if part is Part.INPUT:
        shift.input_exponent += exponent
    else:
        shift.output_exponent += exponent
    if shift.is_idle:
        shift.detach(module)


def innermost(module: nn.Module) -> nn.Module:
    """Return what PEFT's wrappers hold, or the module itself where it is none of them."""
    while isinstance(inner := getattr(module, _BASE, None), nn.Module):
        module = inner
    return module


def _holders(module: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules that hold the weight `name` of a module that may be wrapped, as it was when it was moved."""
    own = getattr(module, "modules_to_save", None)
    if own is None:
        return [innermost(module)]
    original: Any = module.original_module
    moved = original._parameters[name]
    # A copy that the adapter has filled since holds a weight of its own, which was never moved.
    return [original, *(one for one in own.values() if torch.equal(one._parameters[name], moved))]


def _check_ties(places: Mapping[Key, _Place]) -> None:
    names: dict[int, str] = {}
    for key, place in places.items():
        weight = place.owner._parameters.get(place.name) if key[0] is Part.WEIGHT else None
        if weight is not None and names.setdefault(id(weight), key[1]) != key[1]:
            raise RescaleError(f"{names[id(weight)]} and {key[1]} are one weight, which would be moved twice")


def _check_wrapper(target: str, seat: nn.Module, place: _Place, rows: Rows | None) -> None:
    if seat is not place.owner and (rows is not None or type(place.owner).__name__ not in _LINEAR):
        raise RescaleError(
            f"{target} is wrapped in {type(seat).__name__}, and is no linear layer that moves as a whole"
        )


def _check_weight(target: str, weight: torch.Tensor, rows: Rows | None) -> None:
    if weight.is_meta:
        raise RescaleError(f"{target} is offloaded")
    if type(weight.data) is not torch.Tensor:
        raise RescaleError(f"{target} is a {type(weight.data).__name__}, which is not multiplied here")
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise RescaleError(f"{target} holds {weight.dtype}")
    if rows is not None:
        try:
            rows.of(weight.shape[rows.dim])
        except (ValueError, IndexError) as exc:
            raise RescaleError(f"{target} of shape {list(weight.shape)}: {exc}") from exc


def exponents_of_weights(rescale: Rescale) -> dict[str, dict[Rows | None, int]]:
    """Return by which exponents `rescale` multiplies rows of each parameter."""
    return _by_weight(rescale.exponents())


def _by_weight(exponents: Mapping[Key, int]) -> dict[str, dict[Rows | None, int]]:
    by_weight: dict[str, dict[Rows | None, int]] = {}
    for (part, target, rows), exponent in exponents.items():
        if part is Part.WEIGHT:
            by_weight.setdefault(target, {})[rows] = exponent
    return by_weight
