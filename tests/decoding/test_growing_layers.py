"""A layer with room ahead has the keys and values of a plain one, bit for bit, whatever is done to it."""

from __future__ import annotations

import copy
import io
import pickle
import random
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from safe_dtype.decoding import GrowingLayer, GrowingWindowLayer, give_room, growing_layers, take_room

KINDS = {"full": DynamicLayer, "window": lambda: DynamicSlidingWindowLayer(6)}


@pytest.fixture(autouse=True)
def _room_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_layers, "_LEAST_BYTES", 1)


def cache_of(kind: str, *, limit: int | None = None, grows: bool = True) -> Any:
    """Return a cache with one layer, plain or with room ahead."""
    cache = DynamicCache()
    cache.layers.append(KINDS[kind]())
    cache.layer_class_to_replicate = None
    if grows:
        give_room(cache, limit)
    return cache


def states(seed: int, batch: int, new: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return new keys and values as attention makes them: a transposed view."""
    made = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(batch, new, 2, 8, generator=made).to(dtype).transpose(1, 2) for _ in range(2))
    return keys, values


def whole_of(tensor: torch.Tensor) -> int:
    """Return the bytes of what `tensor` is a view of."""
    return tensor.untyped_storage().nbytes()


def same(cache: Any, other: Any) -> bool:
    """Whether two caches hold the same."""
    return all(
        torch.equal(a.keys, b.keys)
        and torch.equal(a.values, b.values)
        and a.get_seq_length() == b.get_seq_length()
        and a.get_mask_sizes(1) == b.get_mask_sizes(1)
        for a, b in zip(cache.layers, other.layers, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_like_a_plain_layer(kind: str, seed: int) -> None:
    """Any sequence of steps and of what else is done to a cache gives the same as in a plain one, and older views stay."""
    choice = random.Random(seed)
    pair = (cache_of(kind), cache_of(kind, grows=False))
    older: list[tuple[torch.Tensor, torch.Tensor]] = []
    batch = 2
    for number in range(80):
        deed = choice.choice(["step"] * 8 + ["steps", "reorder", "select", "repeat", "crop", "float", "own", "reset"])
        if deed in ("step", "steps"):
            keys, values = states(100 * seed + number, batch, choice.randint(2, 9) if deed == "steps" else 1)
            results = [cache.update(keys.to(_dtype(cache)), values.to(_dtype(cache)), 0) for cache in pair]
            assert all(torch.equal(mine, plain) for mine, plain in zip(*results, strict=True))
            assert all(mine.shape == plain.shape for mine, plain in zip(*results, strict=True))
            older += [(one, one.clone()) for one in results[0]]
        elif pair[1].get_seq_length():
            order = torch.tensor([choice.randrange(batch) for _ in range(batch)])
            for cache in pair:
                _do(cache, deed, order)
            batch = pair[1].layers[0].keys.shape[0] if pair[1].get_seq_length() else 2
        if pair[1].get_seq_length():
            assert same(*pair)
    assert all(torch.equal(view, before) for view, before in older)
    assert type(pair[0].layers[0]) in (GrowingLayer, GrowingWindowLayer)


def _dtype(cache: Any) -> torch.dtype:
    return cache.layers[0].keys.dtype if cache.get_seq_length() else torch.bfloat16


def _do(cache: Any, deed: str, order: torch.Tensor) -> None:
    layer = cache.layers[0]
    if deed == "reorder":
        cache.reorder_cache(order)
    elif deed == "select":
        cache.batch_select_indices(order[:2])
    elif deed == "repeat":
        cache.batch_select_indices(order[:1])
        cache.batch_repeat_interleave(2)
    elif deed == "crop" and isinstance(layer, GrowingWindowLayer | DynamicSlidingWindowLayer):
        if layer.get_seq_length() in range(2, layer.sliding_window):
            cache.crop(-1)
    elif deed == "crop":
        cache.crop(-min(2, layer.get_seq_length() - 1))
    elif deed == "float":
        layer.keys, layer.values = layer.keys.float(), layer.values.float()
    elif deed == "own":
        layer.values = layer.values.clone()
    elif deed == "reset":
        cache.reset()


@torch.no_grad()
def test_nothing_is_copied_between_steps() -> None:
    """From the second token on, keys and values stay where they are until the room is full."""
    cache = cache_of("full")
    cache.update(*states(0, 1, 40), 0)
    places = []
    for number in range(1, 18):
        keys, values = cache.update(*states(number, 1, 1), 0)
        places.append((keys.data_ptr(), values.data_ptr()))
    assert len(set(places)) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [20, 17], ids=["as-long", "shorter"])
@torch.no_grad()
def test_data_replaced(kind: str, length: int) -> None:
    """A layer whose tensors stay the same objects, with other numbers in them, goes on from those."""
    pair = (cache_of(kind), cache_of(kind, grows=False))
    for number, new in enumerate((20, 1, 1)):
        for cache in pair:
            cache.update(*states(number, 1, new), 0)
    for layer in (cache.layers[0] for cache in pair):
        for tensor in (layer.keys, layer.values):
            tensor.data = tensor.data[:, :, :length] * 0.5
    results = [cache.update(*states(9, 1, 1), 0) for cache in pair]
    assert all(torch.equal(mine, plain) for mine, plain in zip(*results, strict=True))
    assert same(*pair)


@torch.no_grad()
def test_a_window_moves_along() -> None:
    """A window that is full moves along its room, copied once in a while, and never holds twice its size."""
    cache = cache_of("window")
    cache.update(*states(0, 1, 9), 0)
    moves = set()
    for number in range(1, 40):
        keys, _ = cache.update(*states(number, 1, 1), 0)
        moves.add(keys.untyped_storage().data_ptr())
        assert whole_of(keys) <= 2 * keys.nbytes
    assert len(moves) < 30


@torch.no_grad()
def test_a_window_that_records_its_past() -> None:
    """What a window recorded of its past for assisted decoding is no part of the room that it had before."""
    pair = (cache_of("window"), cache_of("window", grows=False))
    for number in range(30):
        if number in (12, 20):
            for cache in pair:
                cache.layers[0].record_past = number == 12
        results = [cache.update(*states(number, 1, 1 + number % 2), 0) for cache in pair]
        assert all(torch.equal(mine, plain) for mine, plain in zip(*results, strict=True))
    assert same(*pair)


@pytest.mark.parametrize("limit", [None, 45, 200])
@torch.no_grad()
def test_room_is_bounded(limit: int | None) -> None:
    """The room is half of what is in use, and no more than is known to be needed."""
    cache = cache_of("full", limit=limit)
    cache.update(*states(0, 1, 40), 0)
    for number in range(1, 100):
        keys, values = cache.update(*states(number, 1, 1), 0)
        for one in (keys, values):
            most = 1.5 * one.nbytes
            if limit is not None and one.shape[2] <= limit:
                most = min(most, limit * one.nbytes / one.shape[2])
            assert whole_of(one) <= most


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_copies_and_pickles_are_plain(kind: str) -> None:
    """What is copied or pickled is a layer of transformers, without the room; and neither grows into the other."""
    cache = cache_of(kind)
    for number in range(5):
        cache.update(*states(number, 1, 1), 0)
    saved = io.BytesIO()
    torch.save(cache, saved)
    assert b"safe_dtype" not in pickle.dumps(cache)
    shallow = copy.copy(cache)
    shallow.layers = [copy.copy(layer) for layer in cache.layers]
    copies = {
        "deepcopy": copy.deepcopy(cache),
        "pickle": pickle.loads(pickle.dumps(cache)),
        "save": torch.load(io.BytesIO(saved.getvalue()), weights_only=False),
        "shallow": shallow,
    }
    for name, twin in copies.items():
        assert type(twin.layers[0]) in (DynamicLayer, DynamicSlidingWindowLayer), name
        assert same(cache, twin), name
        assert name == "shallow" or whole_of(twin.layers[0].keys) == twin.layers[0].keys.nbytes, name
    before = copies["deepcopy"]
    copies["shallow"].update(*states(50, 1, 1), 0)
    assert same(cache, before)
    cache.update(*states(51, 1, 1), 0)
    assert same(copies["pickle"], before)
    assert repr(cache) == repr(before)


@torch.no_grad()
def test_taken_back() -> None:
    """A cache that is handed on is one of transformers', as large as what it holds."""
    plain = cache_of("full", grows=False)
    cache = EncoderDecoderCache(cache_of("full"), DynamicCache())
    for number in range(9):
        cache.self_attention_cache.update(*states(number, 1, 4), 0)
        plain.update(*states(number, 1, 4), 0)
    take_room(cache)
    layer = cache.self_attention_cache.layers[0]
    assert type(layer) is DynamicLayer
    assert same(cache.self_attention_cache, plain)
    assert layer.__dict__.keys() == plain.layers[0].__dict__.keys()
    assert whole_of(layer.keys) == layer.keys.nbytes


def test_gradients_pass() -> None:
    """Where a gradient is asked for, keys and values are concatenated, and it comes through."""
    cache = cache_of("full")
    with torch.no_grad():
        for number in range(3):
            cache.update(*states(number, 1, 1, torch.float32), 0)
    keys, values = (one.clone().requires_grad_() for one in states(3, 1, 1, torch.float32))
    cache.update(keys, values, 0)
    seen, _ = cache.update(*states(4, 1, 1, torch.float32), 0)
    seen.sum().backward()
    assert torch.equal(keys.grad, torch.ones_like(keys))


def test_inference_mode_and_out_of_it() -> None:
    """A cache that was begun in inference mode goes on outside of it, as a plain one."""
    pair = (cache_of("full"), cache_of("full", grows=False))
    for number in range(8):
        for cache in pair:
            with torch.inference_mode(number < 5), torch.no_grad():
                cache.update(*states(number, 1, 1), 0)
    assert same(*pair)


def test_caches_that_are_left_alone() -> None:
    """Static caches, subclasses, and layers that somebody else has made stay what they are."""

    class OwnCache(DynamicCache):
        pass

    class OwnLayer(DynamicLayer):
        pass

    own = OwnCache()
    own.layers.append(DynamicLayer())
    other = DynamicCache()
    other.layers.append(OwnLayer())
    from guarding.generators import generator

    static = StaticCache(config=generator("qwen3").config, max_cache_len=8)
    for cache in (own, other, static):
        classes = [type(layer) for layer in cache.layers]
        give_room(cache, 10)
        assert [type(layer) for layer in cache.layers] == classes
