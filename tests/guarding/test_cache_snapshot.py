"""Every class of cache comes back to where it was before a step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import generator
from torch import nn
from transformers.cache_utils import DynamicLayer

from safe_dtype.guarding.cache_snapshot import CacheSnapshot
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def filled(make: Callable[[Any], Any], model: Any) -> Any:
    """Return a cache that `model` has filled with a few tokens."""
    cache = make(model.config)
    model(input_ids=IDS, past_key_values=cache)
    return cache


CACHES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "dynamic": ("qwen3", lambda config: transformers.DynamicCache(config=config)),
    "dynamic-sliding": ("gemma3", lambda config: transformers.DynamicCache(config=config)),
    "static": ("qwen3", lambda config: transformers.StaticCache(config=config, max_cache_len=16)),
    "static-sliding": ("gemma3", lambda config: transformers.StaticCache(config=config, max_cache_len=16)),
    "states": ("qwen3_next", lambda config: transformers.DynamicCache(config=config)),
}


@pytest.mark.parametrize("name", CACHES)
@torch.no_grad()
def test_roll_back(name: str) -> None:
    """Rolled back, a cache gives the next step what it gave before, more than once, and after a spoiled step."""
    architecture, make = CACHES[name]
    model = generator(architecture)
    cache = filled(make, model)
    token = {"input_ids": torch.tensor([[9]])}
    snapshot = CacheSnapshot(cache, token)
    assert snapshot.known
    expected = model(**token, past_key_values=cache).logits
    assert snapshot.roll_back()
    last = [label for label, module in model.named_modules() if isinstance(module, nn.Linear) and "layers.0" in label][
        -1
    ]
    with fault(model, last, "nan"):
        assert model(**token, past_key_values=cache).logits.isnan().any()
    for _ in range(2):
        assert snapshot.roll_back()
        assert torch.equal(model(**token, past_key_values=cache).logits, expected)


@torch.no_grad()
def test_no_second_cache_in_memory() -> None:
    """A snapshot keeps no keys of full attention: a reference to the old ones would hold a second cache."""
    model = generator("qwen3")
    cache = filled(lambda config: transformers.DynamicCache(config=config), model)
    old = weakref.ref(cache.layers[0].keys)
    snapshot = CacheSnapshot(cache, {"input_ids": torch.tensor([[9]])})
    model(input_ids=torch.tensor([[9]]), past_key_values=cache)
    gc.collect()
    assert old() is None
    assert snapshot.roll_back()


@torch.no_grad()
def test_an_unknown_class() -> None:
    """A cache of a class that is not known, or with a layer of one, is not touched."""

    class OwnCache(transformers.DynamicCache):
        pass

    class OwnLayer(DynamicLayer):
        pass

    model = generator("qwen3")
    layer = transformers.DynamicCache(config=model.config)
    layer.layers[1] = OwnLayer()
    for cache in (OwnCache(config=model.config), layer):
        model(input_ids=IDS, past_key_values=cache)
        snapshot = CacheSnapshot(cache, {})
        assert not snapshot.known
        model(input_ids=IDS, past_key_values=cache)
        assert not snapshot.roll_back()
        assert cache.get_seq_length() == 2 * IDS.shape[1]


@torch.no_grad()
def test_a_cache_that_lost_more() -> None:
    """A cache that is shorter than it was cannot be brought back, and says so."""
    model = generator("qwen3")
    cache = filled(lambda config: transformers.DynamicCache(config=config), model)
    snapshot = CacheSnapshot(cache, {})
    cache.crop(-2)
    assert not snapshot.roll_back()


@torch.no_grad()
def test_two_caches_in_turn() -> None:
    """Each of two caches comes back to its own length, and nothing keeps one that the caller has let go."""
    model = generator("qwen3")
    caches = [filled(lambda config: transformers.DynamicCache(config=config), model) for _ in range(2)]
    model(input_ids=IDS, past_key_values=caches[1])
    for _ in range(2):
        snapshots = [CacheSnapshot(cache, {}) for cache in caches]
        for cache in caches:
            model(input_ids=IDS, past_key_values=cache)
        assert [snapshot.roll_back() for snapshot in snapshots] == [True, True]
        assert [cache.get_seq_length() for cache in caches] == [IDS.shape[1], 2 * IDS.shape[1]]
    keys = weakref.ref(caches[1].layers[0].keys)
    del cache, caches[1], snapshots
    gc.collect()
    assert keys() is None
