"""Cast and check the inputs of a step: its tensors, and the caches that it continues from."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.utils import ModelOutput

from .quantized.coded_tensors import scales_of, shows_a_dtype

FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


def cast(value: Any, former: Collection[torch.dtype], new: torch.dtype) -> Any:
    """Return `value` with every tensor of a dtype in `former` in `new`, in containers of containers too.

    Caches stay as they are: see `cast_cache`. So does what holds tensors and is no container, as a module or a session.
    """
    if isinstance(value, torch.Tensor):
        return _cast_tensor(value, new) if value.dtype in former else value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: cast(one, former, new) for name, one in value.items()})
    if type(value) in (tuple, list):
        return type(value)([cast(one, former, new) for one in value])
    if type(value) is dict:
        return {name: cast(one, former, new) for name, one in value.items()}
    return _cast_container(value, former, new)


def _cast_container(value: Any, former: Collection[torch.dtype], new: torch.dtype) -> Any:
    """Cast in a container of another kind, as a processor's `BatchFeature`: a copy of it where something changes."""
    if not dtypes_of(value) & set(former):
        return value
    parts = {key: cast(one, former, new) for key, one in _items(value)}
    if isinstance(value, tuple):
        return value._make(parts.values()) if hasattr(value, "_make") else value  # others say not how they are made
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return value
    changed = copy.copy(value)
    for key, part in parts.items():
        if isinstance(changed, MutableMapping | list):
            changed[key] = part
        else:
            object.__setattr__(changed, key, part)  # a dataclass, which may be frozen
    return changed


def cast_cache(
    cache: Any, former: Collection[torch.dtype], new: torch.dtype, *, only: Collection[str] | None = None
) -> None:
    """Cast a cache in place: keys, values and states in a dtype of `former`; codes of a quantized cache stay.

    `only`: the names of the attributes of layers to cast, by default all.
    """
    if isinstance(cache, EncoderDecoderCache):
        cast_cache(cache.self_attention_cache, former, new, only=only)
        cast_cache(cache.cross_attention_cache, former, new, only=only)
        return
    for layer in cache.layers:
        for name, state in list(layer.__dict__.items()):
            if only is not None and name not in only:
                continue
            if isinstance(state, torch.dtype):  # a layer's `dtype`, in which it dequantizes or will be allocated
                changed: Any = new if state in former else state
            else:
                changed = _cast_state(state, former, new)
            if changed is not state:
                layer.__dict__[name] = changed


def dtypes_of(value: Any) -> set[torch.dtype]:
    """Return the floating dtypes of all tensors in `value`, caches apart."""
    if isinstance(value, torch.Tensor):
        return {value.dtype} if value.is_floating_point() else set()
    return set().union(*(dtypes_of(one) for _, one in _items(value)))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a container holds, by key or place; nothing of what is none."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (tuple, list)):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        named = ((field.name, getattr(value, field.name, None)) for field in fields(value))
        return ((name, one) for name, one in named if not is_dataclass(one))  # one may point back at another
    return ()


def is_finite(value: Any) -> bool:
    """Whether every floating tensor in `value` is finite, those of caches too; -Inf is allowed, for masks hold it."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() or value.numel() == 0 or value.device.type == "meta":
            return True
        parts = scales_of(value) if shows_a_dtype(value) else [value if value.dtype.itemsize > 1 else value.float()]
        return all(bool((part.detach().amax() < torch.inf).item()) for part in parts)  # NaN compares false
    if isinstance(value, EncoderDecoderCache):
        return is_finite([value.self_attention_cache, value.cross_attention_cache])
    if isinstance(value, Cache):
        return is_finite([list(layer.__dict__.values()) for layer in value.layers])
    return all(is_finite(one) for _, one in _items(value))


def _cast_state(state: Any, former: Collection[torch.dtype], new: torch.dtype) -> Any:
    """Cast one attribute of a cache layer; a container is rebuilt only where something in it changed."""
    if isinstance(state, torch.Tensor):
        if state.dtype not in former:
            return state
        changed = _cast_tensor(state, new)
        if getattr(state, "_dynamo_static_input_type", None) is not None:  # a compiled decode relies on its address
            torch._dynamo.mark_static_address(changed)
        return changed
    if isinstance(state, (tuple, list)):
        parts = [_cast_state(one, former, new) for one in state]
        return state if all(a is b for a, b in zip(parts, state, strict=True)) else type(state)(parts)
    if isinstance(state, dict):
        for name, value in state.items():
            state[name] = _cast_state(value, former, new)
    return state


def _cast_tensor(tensor: torch.Tensor, new: torch.dtype) -> torch.Tensor:
    if torch.finfo(tensor.dtype).max <= torch.finfo(new).max:
        return tensor.to(new)
    # A mask is filled with the end of the old range, or of bfloat16's where it was made in that; either would be -Inf in
    # the new one, and a row of it NaN. It is filled after the cast: bfloat16 has no -65504.
    end = max(torch.finfo(tensor.dtype).min, torch.finfo(torch.bfloat16).min)
    return tensor.to(new).masked_fill(tensor <= end, torch.finfo(new).min)
