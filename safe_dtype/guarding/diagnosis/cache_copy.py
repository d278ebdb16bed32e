"""A copy of a KV cache for a trial run: what the run writes into is copied, all else is shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import cache_utils as cu

from ..cache_snapshot import is_known


def copy_of_cache(cache: Any, change: Callable[[torch.Tensor], torch.Tensor], layers: set[int]) -> Any:
    """Return a copy of `cache`, every tensor of its `layers` put through `change`; None for an unknown class.

    Args:
        cache: A cache of transformers. It stays as it is, whatever is done with the copy.
        change: Returns a new tensor for one of the cache.
        layers: The layers that the run writes into; empty: all. The rest is shared.
    """
    if type(cache) is cu.EncoderDecoderCache:
        halves = [
            copy_of_cache(half, change, layers) for half in (cache.self_attention_cache, cache.cross_attention_cache)
        ]
        if None in halves:
            return None
        twin = copy.copy(cache)
        twin.self_attention_cache, twin.cross_attention_cache = halves
        twin.is_updated = dict(cache.is_updated)
        return twin
    if not is_known(cache):
        return None
    twin = copy.copy(cache)
    twin.layers = [
        _copy_of_layer(layer, change) if not layers or index in layers else copy.copy(layer)
        for index, layer in enumerate(cache.layers)
    ]
    return twin


def _copy_of_layer(layer: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    twin = copy.copy(layer)
    for name, value in list(twin.__dict__.items()):
        twin.__dict__[name] = _changed(value, change)
    sample = next((value for value in twin.__dict__.values() if isinstance(value, torch.Tensor)), None)
    if sample is not None and sample.is_floating_point() and isinstance(getattr(twin, "dtype", None), torch.dtype):
        twin.dtype = sample.dtype
    return twin


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_changed(part, change) for part in value)
    if isinstance(value, dict):
        return {name: _changed(part, change) for name, part in value.items()}
    return value
