"""Save a rescued model with its original weights, for plain transformers knows neither rescales nor islands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...facts import Dtype, Rescale
from ...models.islands import islands_in
from ...models.origin import known_origin
from ...models.saving.late_tensor import made
from ...models.saving.save_in_its_dtype import by_name, save_in_its_dtype, wrap_accelerate, writes_over
from ...models.saving.saved_dtype import config_saying, dtype_of_rescued, keep_saved_dtype
from ...models.undo_log import UndoLog
from ...models.wrapped_methods import wrap_method
from ...planning import Plan
from .. import rescaled_of
from .own_weights import own_weights
from .rescale_file import Stored, write_stored
from .seams import Place, place_of

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
        watch = place.watch if place is not None else None
        if getattr(self, "_hf_peft_config_loaded", False):
            with nullcontext() if watch is None else watch.quiet():
                return original(self, save_directory, *args, **kwargs)
        args, kwargs = by_name(original, args, kwargs)
        with nullcontext() if watch is None else watch.unchanged():
            config_saved, state = _as_it_was(self, place, kwargs)
        if state is None:
            return save_in_its_dtype(original, self, save_directory, *args, **kwargs)
        kwargs["state_dict"] = made(state) if writes_over(self, save_directory) else state
        with config_saved, nullcontext() if watch is None else watch.quiet():
            return original(self, save_directory, *args, **kwargs)

    return save_pretrained


def _as_it_was(
    model: Any, place: Place | None, kwargs: Mapping[str, Any]
) -> tuple[AbstractContextManager[None], dict[str, Tensor] | None]:
    """Return a context in which the config is saved as it was, and the weights to save; None where those are as they were."""
    state = kwargs.get("state_dict")
    if place is not None and place.watch is not None and place.path:
        whole = place.watch.model
        if state is None:
            state = _below(place.path, own_weights(whole, whole.state_dict(), place.watch.unchanged))
        return _config_as_it_was(model, None, dtype_of_rescued(whole)), state
    stored = _in_force(model)
    if stored is None:
        return nullcontext(), None
    unchanged = nullcontext if place is None or place.watch is None else place.watch.unchanged
    state = own_weights(model, model.state_dict() if state is None else state, unchanged)
    return _config_as_it_was(model, stored, dtype_of_rescued(model)), state


def save_in_saved_dtype(model: nn.Module, plan: Plan) -> None:
    """Have `save_pretrained` write `model`, which was loaded as planned, in the dtype that `keep_saved_dtype` names."""
    keep_saved_dtype(model, plan, _wrap_saves)


def _wrap_saves(user: object) -> None:
    wrap_method(PreTrainedModel, "save_pretrained", _saving_as_it_was, user)
    wrap_accelerate(user)


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


@contextmanager
def _config_as_it_was(model: Any, stored: Stored | None, dtype: Dtype) -> Iterator[None]:
    """Save the config with the dtype of the original files, and the rescue in a file beside it."""

    def beside(directory: Any) -> None:
        if stored is not None:
            write_stored(stored, Path(directory))

    with config_saying(model.config, getattr(torch, dtype.name), beside):
        yield
