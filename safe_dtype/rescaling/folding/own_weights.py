"""The weights of a rescued model as they are saved: of their files where nobody has changed them, in the files' dtype."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...errors.warn import warn
from ...facts import FLOAT16
from ...models.original_weights import OriginalWeights
from ...models.saving.late_tensor import LateTensor
from ...models.saving.saved_dtype import dtype_of_rescued
from .fold import exponents_of_weights
from .rescaled import rescaled_of
from .stored_weights import stored_weight

logger = logging.getLogger(__name__)

Unchanged = Callable[[], AbstractContextManager[None]]

_NAMED = 3  # how many weights a line names


def own_weights(model: Any, state: Mapping[str, Tensor], unchanged: Unchanged = nullcontext) -> dict[str, Tensor]:
    """Return `state`, the state dict of a rescued model, with the values that its tensors have without the rescale.

    A tensor that is still what was loaded comes from its file, bit for bit and in the file's dtype. One that was changed
    since, or whose file cannot be read, is moved back, with the bits that it lost meanwhile, and rounded to that dtype, as
    if the model had been changed in it; where numbers leave its range, it stays in float32. Tied weights stay tied.

    Each is made once here, to know its dtype and what is to be said of it, and anew when it is read (see `LateTensor`).
    Before the rescale changes, those that nobody has read yet are made: `Fold.unread`.

    Args:
        model: As it is now.
        state: Its state dict, or the caller's own.
        unchanged: Returns a context in which nobody changes the rescale.
    """
    weights: dict[Hashable, Tensor] = {}
    converted = _Converted(type(model).__name__)
    with OriginalWeights(model) as original:
        makes = _Makes(model, original, unchanged)
        for name, tensor in sorted(state.items(), key=lambda item: item[0] not in makes.moved):
            place = _place(name, tensor)
            if place not in weights:
                weights[place] = _late(makes, name, tensor, converted)
    if original.problems:
        logger.warning("%s: %s: weights are saved as they are now", type(model).__name__, "; ".join(original.problems))
    converted.tell()
    return {name: weights[_place(name, tensor)] for name, tensor in state.items()}


def _late(makes: _Makes, name: str, tensor: Tensor, converted: _Converted) -> Tensor:
    own = makes.weight(name, tensor, converted)
    if own is tensor or own.is_meta or type(own.data) is not Tensor:
        return own

    weight = _Weight(makes, name, tensor)
    makes.hand_out(weight)
    return LateTensor(weight.read, own, own.dtype)


class _Weight:
    """One weight as it is saved, which is made when it is read, or before the rescale changes."""

    def __init__(self, makes: _Makes, name: str, tensor: Tensor) -> None:
        self._makes, self._name, self._tensor = makes, name, tensor
        self._kept: Tensor | None = None

    def read(self) -> Tensor:
        """Return it."""
        with self._makes.unchanged():
            if self._kept is not None:
                return self._kept
            with self._makes.original:  # files are open no longer than they are read
                return self._makes.weight(self._name, self._tensor, _Converted(""))

    def keep(self) -> None:
        """Make it now: the rescale is about to change."""
        self._kept = self.read()


class _Makes:
    """Makes the weights of a model as they are without the rescale that is in force now."""

    def __init__(self, model: Any, original: OriginalWeights, unchanged: Unchanged) -> None:
        rescaled = rescaled_of(model)
        self.original, self.unchanged = original, unchanged
        self.moved = rescaled.fold.moved() if rescaled is not None else {}
        self._rescaled = rescaled
        self._loaded = exponents_of_weights(rescaled.fold.loaded) if rescaled is not None else {}
        self._present = {name: tensor.dtype for name, tensor in model.state_dict(keep_vars=True).items()}
        self._dtype: torch.dtype = getattr(torch, dtype_of_rescued(model).name)

    def hand_out(self, weight: _Weight) -> None:
        """Have a weight made before the rescale changes, if it is still to be read then."""
        if self._rescaled is not None:
            self._rescaled.fold.unread.add(weight)

    def weight(self, name: str, tensor: Tensor, converted: _Converted) -> Tensor:
        """Return one, by its name and what is in memory; `converted` takes down where it is rounded."""
        if self._rescaled is None or name not in self.moved:
            own, stored = tensor, self.original.unchanged(name, tensor)
        else:
            own = self._rescaled.fold.unmoved(name, tensor, self.moved[name])
            stored = stored_weight(self.original, name, own, tensor.dtype, self._loaded.get(name, {}))
        if stored is not None:
            return stored
        if tensor.dtype != self._present.get(name):  # the caller's own choice
            return own.to(tensor.dtype)
        return converted.of(name, own, self.original.dtype_of(name) or self._dtype)


def _place(name: str, tensor: Tensor) -> Hashable:
    """Return what names of tied weights, of which a save writes one, have in common."""
    if tensor.is_meta or type(tensor.data) is not Tensor:
        return name
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


class _Converted:
    """What was converted into the dtype of the checkpoint, to be told in one line."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._rounded: dict[torch.dtype, list[str]] = {}
        self._too_large: dict[torch.dtype, list[str]] = {}

    def of(self, name: str, own: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a weight in this dtype; in float32 where numbers leave its range."""
        if own.dtype == dtype or not own.is_floating_point() or own.is_meta or not dtype.is_floating_point:
            return own
        if dtype.itemsize < FLOAT16.itemsize:  # codes, whose scales nobody computes here
            return own
        cast = own.to(dtype)
        if not torch.equal(cast.isfinite(), own.isfinite()):
            self._too_large.setdefault(dtype, []).append(name)
            return own.float()
        if not torch.equal(cast.to(own.dtype), own):
            self._rounded.setdefault(dtype, []).append(name)
        return cast

    def tell(self) -> None:
        """Log what was rounded, and warn of what could not be."""
        for dtype, names in self._rounded.items():
            logger.warning(
                "%s: weights that have changed since they were loaded are rounded to %s, which the checkpoint is in, to be "
                "saved: %s", self._model, _name(dtype), _some(names),
            )  # fmt: skip
        for dtype, names in self._too_large.items():
            warn(
                f"{_some(names)} of {self._model} hold numbers beyond {_name(dtype)}, which the checkpoint is in: they are "
                "saved in float32, and loaded in that dtype they would become infinite. Next: load with dtype='float32'"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
