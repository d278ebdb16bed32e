"""The weights of a rescued model as they are saved: of their files where nobody has changed them, in the files' dtype."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors.warn import warn
from ...facts import BFLOAT16, FLOAT16
from ...models.origin import known_origin
from ...models.original_weights import OriginalWeights
from .fold import exponents_of_weights
from .rescaled import rescaled_of
from .stored_weights import stored_weight

logger = logging.getLogger(__name__)

_NAMED = 3  # how many weights a line names


def saved_dtype(model: Any) -> torch.dtype:
    """Return the dtype of the checkpoint of a rescued model, which its config is saved with."""
    origin = known_origin(model)
    dtype: torch.dtype = getattr(torch, (origin.plan.saved if origin is not None else BFLOAT16).name)
    return dtype


def own_weights(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state`, the state dict of a rescued model, with the values that its tensors have without the rescale.

    A tensor that is still what was loaded comes from its file, bit for bit and in the file's dtype. One that was changed
    since, or whose file cannot be read, is moved back, with the bits that it lost meanwhile, and rounded to that dtype, as
    if the model had been changed in it; where numbers leave its range, it stays in float32. Tied weights stay tied.
    """
    rescaled = rescaled_of(model)
    moved = rescaled.fold.moved() if rescaled is not None else {}
    loaded = exponents_of_weights(rescaled.fold.loaded) if rescaled is not None else {}
    present = {name: tensor.dtype for name, tensor in model.state_dict(keep_vars=True).items()}
    weights: dict[Hashable, Tensor] = {}
    converted = _Converted(type(model).__name__)
    with OriginalWeights(model) as original:
        for name, tensor in sorted(state.items(), key=lambda item: item[0] not in moved):
            place = _place(name, tensor)
            if place in weights:
                continue
            if rescaled is None or name not in moved:
                own, stored = tensor, original.unchanged(name, tensor)
            else:
                own = rescaled.fold.unmoved(name, tensor, moved[name])
                stored = stored_weight(original, name, own, tensor.dtype, loaded.get(name, {}))
            if stored is not None:
                weights[place] = stored
            elif tensor.dtype == present.get(name):
                weights[place] = converted.of(name, own, original.dtype_of(name) or saved_dtype(model))
            else:  # the caller's own choice
                weights[place] = own.to(tensor.dtype)
    if original.problems:
        logger.warning("%s: %s: weights are saved as they are now", type(model).__name__, "; ".join(original.problems))
    converted.tell()
    return {name: weights[_place(name, tensor)] for name, tensor in state.items()}


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
