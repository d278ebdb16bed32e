"""Whether anybody has written into the weights that a rescale has moved, behind its back."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.original_weights import Exponents
from .fold import Fold

_SAMPLES = 32  # elements of each weight that are compared, evenly spread, beside one row and one column
_LINE = 2**18  # elements of a row or a column, at most
_LOST = 2.0**-24  # what float16 loses of a number that is too small for it, at most


class _Storage:
    """Where a tensor lies: an address alone may be given to another one later. A copy knows no tensor."""

    __slots__ = ("_reference",)

    def __init__(self, tensor: Tensor | None = None) -> None:
        self._reference = None if tensor is None else weakref.ref(tensor.untyped_storage())

    def __reduce__(self) -> tuple[type[_Storage], tuple[()]]:
        return _Storage, ()

    def is_of(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies there."""
        return self._reference is not None and self._reference() is tensor.untyped_storage()


@dataclass(frozen=True, eq=False, slots=True)
class _Weight:
    """A moved weight as it was left."""

    target: str
    holder: nn.Module
    name: str
    parameter: Tensor
    storage: _Storage
    pointer: int
    version: int
    dtype: torch.dtype
    sample: Tensor  # of `_some`, float32
    exponents: Exponents

    def is_as_it_was(self) -> bool:
        """Whether it is the same object at the same place, and no operation of torch has written into it."""
        now = self.holder._parameters.get(self.name)
        return now is not None and self._is_there(now) and _version(now) == self.version

    def is_only_elsewhere(self) -> bool:
        """Whether the same values lie at another place, or in another dtype."""
        now = self.holder._parameters.get(self.name)
        if now is None or self._is_there(now):
            return False  # written into in place
        sample = _sample(now)
        near = max(torch.finfo(one).eps for one in (now.dtype, self.dtype) if one.is_floating_point)
        return sample.shape == self.sample.shape and torch.allclose(sample, self.sample, rtol=near, atol=_LOST)

    def _is_there(self, now: Tensor) -> bool:
        same = now is self.parameter and now.data_ptr() == self.pointer
        return same and self.storage.is_of(now)

    def is_of_its_own_size(self) -> bool:
        """Whether its values now are nearer to what they are without the rescale than to what they are with it."""
        now = self.holder._parameters.get(self.name)
        if now is None:
            return False
        before, after = (float(one.square().mean()) for one in (self.sample, _sample(now)))
        if not before or not after or not math.isfinite(after):
            return False
        grown = math.log2(after / before) / 2
        moved = next(iter(self.exponents.values()))
        return abs(grown + moved) < abs(grown)


@dataclass(frozen=True, eq=False, slots=True)
class _Number:
    """A moved number as it was left: a float, or a buffer."""

    target: str
    owner: nn.Module
    name: str
    value: Any
    version: int
    size: float

    @classmethod
    def of(cls, target: str, owner: nn.Module, name: str) -> _Number:
        """Return the number as it is."""
        value = getattr(owner, name)
        return cls(target, owner, name, value, _version(value) if isinstance(value, Tensor) else 0, float(value))

    def is_unchanged(self) -> bool:
        """Whether it is what it was; on an accelerator nothing waits for a buffer that nobody has touched."""
        now = getattr(self.owner, self.name, None)
        if isinstance(now, Tensor) and now is self.value and _version(now) == self.version:
            return True
        return now is not None and float(now) == self.size


@dataclass(frozen=True, slots=True)
class Overwritten:
    """Names of what was written into since, and which of these values are the model's own, not rescaled ones."""

    names: tuple[str, ...]
    own: frozenset[str]


class Certificate:
    """The moved weights and numbers as the fold left them."""

    def __init__(self, fold: Fold) -> None:
        moved = fold.moved()
        self._weights = [
            _Weight(
                target,
                holder,
                name,
                weight,
                _Storage(weight),
                weight.data_ptr(),
                _version(weight),
                weight.dtype,
                _sample(weight).clone(),  # of float32 it is a view
                moved[target],
            )
            for target, holder, name, weight in fold.moved_weights()
        ]
        self._numbers = [_Number.of(*place) for place in fold.moved_numbers()]

    def written(self) -> Overwritten | None:
        """Return what was written into since; None where all is as it was, or has only moved to another place."""
        numbers = [one.target for one in self._numbers if not one.is_unchanged()]
        changed = [] if self._is_untouched() else [one for one in self._weights if not self._is_unchanged(one)]
        if not changed and not numbers:
            return None
        own = {one.target for one in changed if one.is_of_its_own_size()}
        return Overwritten((*(one.target for one in changed), *numbers), frozenset({*own, *numbers}))

    def is_written(self, target: str) -> bool:
        """Whether somebody has written into one of the weights."""
        return any(one.target == target and not self._is_unchanged(one) for one in self._weights)

    @property
    def is_old(self) -> bool:
        """Whether a weight has moved to another place."""
        return not all(one.is_as_it_was() for one in self._weights)

    def _is_untouched(self) -> bool:
        """Whether every weight is as it was: asked of all at once, for this is asked before every prompt."""
        if not all(one.is_as_it_was() for one in self._weights):
            return False
        here = [_some(one.parameter) for one in self._weights if one.parameter.is_cpu]
        if not here or len({one.dtype for one in here}) > 1:
            return not here
        expected = [one.sample for one in self._weights if one.parameter.is_cpu]
        return torch.equal(torch.cat(here).float(), torch.cat(expected))

    def _is_unchanged(self, weight: _Weight) -> bool:
        if not weight.is_as_it_was():
            return weight.is_only_elsewhere()
        # What is written to `.data` leaves no trace. On an accelerator reading the values would wait for it.
        return not weight.parameter.is_cpu or torch.equal(_sample(weight.parameter), weight.sample)


def _sample(weight: Tensor) -> Tensor:
    return _some(weight).float().cpu()


def _some(weight: Tensor) -> Tensor:
    """Return some elements of every part of a weight: whoever writes a whole row or column writes into one of them."""
    flat = weight.detach().flatten()
    spread = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
    if weight.dim() < 2 or not weight.is_contiguous():
        return spread
    rows = flat.view(-1, weight.shape[-1])
    column = rows[:: max(1, len(rows) // _LINE), rows.shape[1] // 2]
    return torch.cat((spread, column, rows[len(rows) // 2, :_LINE]))


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version
