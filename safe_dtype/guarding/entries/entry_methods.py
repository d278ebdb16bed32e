"""Which methods of a model are entries: ways into it beside a call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from ...models.wrapped_methods import owner_of

FORWARD = "forward"
_GENERATE = "generate"
_CONTAINERS = nn.Sequential.__module__
# What every model has: moving, saving, resizing, preparing inputs. A model's own version of it is housekeeping as well.
_OF_EVERY_MODEL = frozenset({*dir(PreTrainedModel), *dir(GenerationMixin)}) - {FORWARD}


def entry_methods(model_class: type) -> Iterator[tuple[type, str]]:
    """Yield the entries of a class of models, each with the class in its line that defines it.

    They are `forward`, and every public method that models of this class have and models as such have not: `decode` of a
    codec, `get_text_features`, what a repository's own code adds. No class method, static method or property is one, nor
    a generator, nor what itself calls `generate` (Whisper's `generate_with_fallback`). Whether a call of one is a step
    shows when it is called: see `is_step`.
    """
    for name in sorted({name for base in model_class.__mro__ for name in vars(base)} - _OF_EVERY_MODEL):
        owner = owner_of(model_class, name)
        if owner is not None and not name.startswith("_") and _is_entry(owner, name):
            yield owner, name


def _is_entry(owner: type, name: str) -> bool:
    method = vars(owner)[name]
    if not isinstance(method, FunctionType) or owner is nn.Module:
        return False
    # Of torch's own classes containers alone: whether the forward of a layer is torch's own decides which way others take.
    if owner.__module__.startswith("torch.") and (name != FORWARD or owner.__module__ != _CONTAINERS):
        return False
    function = inspect.unwrap(method)
    if _GENERATE in getattr(getattr(function, "__code__", None), "co_names", ()):  # each step of that is guarded
        return False
    return not (inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function))


def is_step(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a method other than `forward` is a step: it is handed tensors.

    Without any there is nothing to compute (`enable_tiling()`), or it makes them itself and runs the model step by step
    (`chat("Hello")`): those steps are guarded each.
    """
    return any(_holds_tensor(value) for value in (*args, *kwargs.values()))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(isinstance(part, torch.Tensor) for part in value)
    return isinstance(value, torch.Tensor)
