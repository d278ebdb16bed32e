"""A guarded model on a CPU generates from a cache with room ahead what it would from a plain one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as tf
from guarding.generators import BOTH_ROWS, DOWN, ONE_ROW, Tape, generate, generator, with_unknown_cache

from safe_dtype import guard, report
from safe_dtype.decoding import GrowingLayer, GrowingWindowLayer, growing_layers
from safe_dtype.testing import fault

WAYS: dict[str, dict[str, Any]] = {
    "greedy": BOTH_ROWS,
    "sample": BOTH_ROWS | {"do_sample": True, "top_k": 20},
    "beams": BOTH_ROWS | {"num_beams": 3, "num_return_sequences": 2},
    "beam-sample": BOTH_ROWS | {"num_beams": 2, "do_sample": True},
    "sequences": BOTH_ROWS | {"do_sample": True, "num_return_sequences": 2},
    "lookup": ONE_ROW | {"prompt_lookup_num_tokens": 3},
    "chunks": ONE_ROW | {"prefill_chunk_size": 2},
    "static": BOTH_ROWS | {"cache_implementation": "static"},
}
MODELS = (
    "qwen3",
    "gemma3",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "qwen3_next", "deepseek_v3")),
)
LONG = {"max_new_tokens": 24}


class Counted:
    """How often keys and values were written behind others."""

    def __init__(self) -> None:
        self.appends = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Have little caches grow as well, and count."""
    counts, append = Counted(), growing_layers._Room.append

    def counting(self: Any, *args: Any) -> Any:
        result = append(self, *args)
        counts.appends += result is not None
        return result

    monkeypatch.setattr(growing_layers, "_LEAST_BYTES", 1)
    monkeypatch.setattr(growing_layers._Room, "append", counting)
    return counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_same_generation(name: str, way: str, counted: Counted) -> None:
    """Tokens, scores and random numbers are those of the plain model, and so is the cache that comes back."""
    try:
        plain = generate(generator(name), **WAYS[way] | LONG)
    except (ValueError, RuntimeError, AttributeError) as exc:
        pytest.skip(f"transformers does not generate {name} by {way}: {exc}")
    mine = generate(guard(generator(name)), **WAYS[way] | LONG)
    assert mine.differs(plain) == []
    caches = [getattr(run.cache, "self_attention_cache", run.cache) for run in (mine, plain)]
    assert [type(layer) for layer in caches[0].layers] == [type(layer) for layer in caches[1].layers]
    assert all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) and a.__dict__.keys() == b.__dict__.keys()
        for a, b in zip(*(cache.layers for cache in caches), strict=True)
        if isinstance(getattr(a, "keys", None), torch.Tensor)
    )
    grows = way in ("greedy", "sample", "sequences", "chunks")
    assert (counted.appends > 0) == grows or way == "lookup"


# Transformers 5.16 cuts no mask for a cache with a window that is cropped.
@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma3", marks=pytest.mark.needs("transformers>=5.17"))])
def test_assisted(name: str, counted: Counted) -> None:
    """With a small model that proposes tokens, guarded too, the result is that of two plain models."""
    runs = []
    for put_on in (lambda model: model, guard):
        small = put_on(generator(name))
        with torch.no_grad():
            small.get_output_embeddings().weight.mul_(1.5)
        runs.append(generate(put_on(generator(name)), **ONE_ROW | LONG, assistant_model=small))
    assert runs[1].differs(runs[0]) == []


@pytest.mark.parametrize("kind", ["nan", "cublas"])
@pytest.mark.parametrize("call", [0, 1, 9])
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_rolled_back(name: str, call: int, kind: str, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails in the middle of a grown cache is rolled back, and what comes out is the same without room."""
    runs, streams = [], []
    for least in (1, 2**40):
        monkeypatch.setattr(growing_layers, "_LEAST_BYTES", least)
        model, tape = guard(generator(name)), Tape()
        with fault(model, DOWN, kind, call=call) as put:
            runs.append(generate(model, **ONE_ROW | LONG, streamer=tape))
        assert put.fired
        assert report(model).events
        streams.append((tape.tokens, tape.ends))
    assert counted.appends
    assert runs[0].differs(runs[1]) == []
    assert streams[0] == streams[1]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param("qwen3", lambda config: tf.DynamicCache(config=config), id="full"),
        pytest.param("qwen3", lambda config: tf.DynamicCache(), id="without-config"),
        pytest.param("gemma3", lambda config: tf.DynamicCache(config=config), id="window"),
    ],
)
def test_own_cache(name: str, make: Callable[[Any], Any], counted: Counted) -> None:
    """A cache that the caller passes in is not touched, and goes on where a generation of ours has ended."""
    model = guard(generator(name))
    cache = make(model.config)
    plain = generate(generator(name), **ONE_ROW | LONG)
    first = generate(model, **ONE_ROW | LONG, past_key_values=cache)
    assert not counted.appends
    assert first.differs(plain) == []
    assert not [layer for layer in cache.layers if isinstance(layer, GrowingLayer | GrowingWindowLayer)]
    made = generate(model, **ONE_ROW | LONG)
    assert counted.appends
    longer = [torch.cat((run.tensors[0], torch.tensor([[5, 6]])), 1) for run in (made, plain)]
    again = [
        generate(one, input_ids=ids, past_key_values=run.cache, max_new_tokens=4)
        for one, ids, run in zip((model, generator(name)), longer, (made, plain), strict=True)
    ]
    assert again[0].differs(again[1]) == []


def test_plain_models_stay(counted: Counted) -> None:
    """Beside a guarded model, one that is not guarded makes the cache that it always made; so does one in training."""
    guarded, plain = guard(generator("qwen3")), generator("qwen3")
    generate(plain, **ONE_ROW)
    generate(guarded.train(), **ONE_ROW)
    assert not counted.appends


def test_unknown_cache(counted: Counted) -> None:
    """A cache of a class that nobody knows is left alone."""
    plain = generate(with_unknown_cache(generator("qwen3")), **ONE_ROW)
    mine = generate(with_unknown_cache(guard(generator("qwen3"))), **ONE_ROW)
    assert mine.differs(plain) == []
    assert not counted.appends


@pytest.mark.slow
def test_compiled(counted: Counted) -> None:
    """A compiled model concatenates, and gives what it gives without a guard."""
    runs = []
    for put_on in (lambda model: model, guard):
        model = generator("gemma3")
        model.forward = torch.compile(model.forward, backend="eager", dynamic=True)
        runs.append(generate(put_on(model), **ONE_ROW, max_new_tokens=5))
    assert runs[1].differs(runs[0]) == []
