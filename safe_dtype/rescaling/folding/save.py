"""Save a rescued model with its original weights, for plain transformers knows neither rescales nor islands."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...facts import BFLOAT16, Rescale
from ...models.islands import islands_in
from ...models.origin import Origin, known_origin
from ...models.original_weights import OriginalWeights
from ...models.undo_log import UndoLog
from ...models.wrapped_methods import wrap_method
from .. import rescaled_of
from .fold import exponents_of_weights
from .rescale_file import Stored, write_stored
from .seams import place_of
from .stored_weights import stored_weight

logger = logging.getLogger(__name__)

_ATTRIBUTE = "_safe_dtype_saved_as_it_was"  # in the __dict__ of the model


class _SavedAsItWas:
    """An attribute of a rescued model, copied and pickled with it. While one exists `save_pretrained` is wrapped."""

    def __init__(self) -> None:
        wrap_method(PreTrainedModel, "save_pretrained", _saving_as_it_was, self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _SavedAsItWas, ()


def save_as_it_was(model: nn.Module, log: UndoLog | None = None) -> None:
    """Have `save_pretrained` write the original weights of `model`, which was rescued; `log` gets the way back."""
    if _ATTRIBUTE not in model.__dict__:
        if log is not None:
            log.add(functools.partial(model.__dict__.pop, _ATTRIBUTE, None))
        model.__dict__[_ATTRIBUTE] = _SavedAsItWas()


def _saving_as_it_was(original: Callable[..., Any]) -> Callable[..., Any]:
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        place = place_of(self)
        with nullcontext() if place is None or place.watch is None else place.watch.quiet():
            if getattr(self, "_hf_peft_config_loaded", False):
                return original(self, save_directory, *args, **kwargs)
            if place is not None and place.watch is not None and place.path:
                whole = place.watch.model
                state = _below(place.path, own_weights(whole, whole.state_dict()))
                with _config_as_it_was(self, None, known_origin(whole)):
                    return original(self, save_directory, *args, **{"state_dict": state, **kwargs})
            stored = _in_force(self)
            if stored is None:
                return original(self, save_directory, *args, **kwargs)
            state = kwargs.pop("state_dict", None)
            state = own_weights(self, self.state_dict() if state is None else state)
            with _config_as_it_was(self, stored, known_origin(self)):
                return original(self, save_directory, *args, state_dict=state, **kwargs)

    return save_pretrained


def _below(path: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{path}."): tensor for name, tensor in state.items() if name.startswith(f"{path}.")}


def _in_force(model: Any) -> Stored | None:
    """Return the rescale and the islands of a rescued model; None where it has neither."""
    origin, rescale = known_origin(model), _rescale_of(model)
    plan = origin.plan if origin is not None else None
    # An island of the guard's alone was never measured, and weights in float16 are what was loaded then.
    planned = tuple(islands_in(model)) if rescale or (plan is not None and plan.islands) else ()
    if rescale is None and not planned:
        return None
    within = plan is not None and plan.chosen is not None and plan.chosen.accepted
    return Stored(rescale, planned, plan.policy.max_drift if plan is not None and within else None)


def _rescale_of(model: Any) -> Rescale | None:
    rescaled = rescaled_of(model)
    return rescaled.rescale if rescaled is not None and rescaled.rescale.shifts else None


def own_weights(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state`, the state dict of a rescued model, with the values that its tensors have without the rescale.

    A tensor that is still what was loaded comes from its file, bit for bit and in the file's dtype. One that was changed
    since, or whose file cannot be read, is moved back, with the bits that it lost meanwhile: in the model's dtype where
    it fits, else in float32.
    """
    rescaled = rescaled_of(model)
    moved = rescaled.fold.moved() if rescaled is not None else {}
    loaded = exponents_of_weights(rescaled.fold.loaded) if rescaled is not None else {}
    weights: dict[str, Tensor] = {}
    with OriginalWeights(model) as original:
        for name, tensor in state.items():
            if rescaled is None or name not in moved:
                stored = original.unchanged(name, tensor)
                weights[name] = tensor if stored is None else stored
                continue
            own = rescaled.fold.unmoved(name, tensor, moved[name])
            stored = stored_weight(original, name, own, tensor.dtype, loaded.get(name, {}))
            weights[name] = _narrow(own, tensor.dtype) if stored is None else stored
    if original.problems:
        logger.warning(
            "%s: %s: weights are saved as they are in %s",
            type(model).__name__,
            "; ".join(original.problems),
            model.dtype,
        )
    return weights


def _narrow(whole: Tensor, dtype: torch.dtype) -> Tensor:
    half = whole.to(dtype)
    return half if torch.equal(half.float(), whole) else whole


@contextmanager
def _config_as_it_was(model: Any, stored: Stored | None, origin: Origin | None) -> Iterator[None]:
    """Save the config with the dtype of the original files, and the rescue in a file beside it."""
    config = model.config
    now = config.dtype
    saved = origin.plan.saved if origin is not None else BFLOAT16
    save = config.save_pretrained

    def save_pretrained(directory: Any, **kwargs: Any) -> Any:
        config.__dict__.pop("save_pretrained", None)  # it is no part of what is saved
        config.dtype = saved.name
        result = save(directory, **kwargs)
        if stored is not None:
            write_stored(stored, Path(directory))
        return result

    config.__dict__["save_pretrained"] = save_pretrained
    try:
        yield
    finally:
        config.__dict__.pop("save_pretrained", None)
        config.dtype = now
