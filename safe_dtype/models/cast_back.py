"""What a call was given, before it is cast into the dtype of a changed model: for the case that the change is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.utils import ModelOutput


def as_they_are(values: Iterable[Any], new: torch.dtype | None) -> Callable[[], None]:
    """Return what brings caches and model outputs back to the dtypes that they have now.

    Call it with caches as long as they are now. What is cast to float32 comes back exactly by a cast; of anything else
    the tensors themselves are held.

    Args:
        values: The arguments of a call.
        new: The dtype that they are cast to.
    """
    layers = [layer for value in values for layer in _layers_of(value)]
    outputs = [(value, dict(value)) for value in values if isinstance(value, ModelOutput)]
    states = [(layer, {name: _remembered(state, new) for name, state in layer.__dict__.items()}) for layer in layers]

    def undo() -> None:
        for output, before in outputs:
            for name, value in before.items():
                output[name] = value
        for layer, remembered in states:
            for name, before in remembered.items():
                layer.__dict__[name] = _back(layer.__dict__.get(name), before)

    return undo


def _layers_of(value: Any) -> list[Any]:
    if isinstance(value, EncoderDecoderCache):
        return [*_layers_of(value.self_attention_cache), *_layers_of(value.cross_attention_cache)]
    return list(value.layers) if isinstance(value, Cache) else []


def _remembered(state: Any, new: torch.dtype | None) -> Any:
    """Return the dtype of a tensor where that is enough to bring it back; else what there is."""
    if isinstance(state, torch.Tensor):
        return state.dtype if new == torch.float32 and state.dtype in (torch.bfloat16, torch.float16) else state
    if isinstance(state, (tuple, list)):
        return type(state)(_remembered(part, new) for part in state)
    if isinstance(state, dict):
        return {name: _remembered(part, new) for name, part in state.items()}
    return state


def _back(state: Any, before: Any) -> Any:
    if isinstance(before, torch.dtype):
        return state.to(before) if isinstance(state, torch.Tensor) else before
    if isinstance(state, torch.Tensor) and isinstance(before, torch.Tensor):
        # What was not cast may have been written into, and brought back by its own snapshot.
        return state if state.dtype == before.dtype else before
    if isinstance(state, (tuple, list)) and isinstance(before, (tuple, list)):
        return type(state)(_back(part, former) for part, former in zip(state, before, strict=True))
    if isinstance(state, dict) and isinstance(before, dict):
        return {name: _back(part, before.get(name)) for name, part in state.items()}
    return state
