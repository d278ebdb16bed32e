"""What a candidate would take, computed by hand from rates and shapes that are easy to multiply."""

from __future__ import annotations

from dataclasses import replace

import factories as f
import pytest

from safe_dtype.facts import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    CacheShape,
    CheckpointFacts,
    DeviceFacts,
    Dtype,
    LinearFacts,
    TensorFacts,
    Timing,
    VerdictKind,
)
from safe_dtype.planning import Candidate, Routes, Workload
from safe_dtype.planning.predict import decode_seconds, predict, prefill_seconds, weight_bytes

ROUTES = Routes("plain", None, (1e-9, 2e-9, 64e-9))  # seconds for one weight element at 1, 16 and 512 rows
NO_CACHE = CacheShape()
IN_FLOAT32 = Candidate(FLOAT32, FLOAT32)


def model(*linears: LinearFacts, cache: CacheShape = NO_CACHE, dtype: str = "float32") -> CheckpointFacts:
    """Return a model of these weights alone: nothing is lost in norms."""
    tensors = tuple(
        TensorFacts(f"layers.{place}.weight", dtype, (one.out_features, one.in_features), "model.safetensors")
        for place, one in enumerate(linears)
    )
    return replace(f.checkpoint(FLOAT32), tensors=tensors, linears=linears, cache=cache, hidden_size=0, vocab_size=0)


BODY = LinearFacts(1000, 1000, 1)
HEAD = LinearFacts(1000, 1000, 1, per_position=False)
EXPERTS = LinearFacts(1000, 1000, 8, active=0.25)


@pytest.mark.parametrize(
    ("linears", "tokens", "seconds"),
    [
        pytest.param((BODY,), 1, 1e6 * 1e-9, id="one-row"),
        pytest.param((BODY,), 512, 1e6 * 64e-9, id="512-rows"),
        pytest.param((BODY,), 1024, 1e6 * 128e-9, id="beyond-in-proportion"),
        pytest.param((BODY,), 264, 1e6 * 33e-9, id="between-in-proportion"),
        pytest.param((BODY, HEAD), 512, 1e6 * 64e-9 + 1e6 * 1e-9, id="the-head-computes-one-row"),
        pytest.param((EXPERTS,), 512, 2e6 * 64e-9, id="the-experts-that-a-token-passes"),
    ],
)
def test_prefill(linears: tuple[LinearFacts, ...], tokens: int, seconds: float) -> None:
    """A prompt takes its products at its rows."""
    assert prefill_seconds(IN_FLOAT32, ROUTES, f.device(), model(*linears), tokens) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("layout", "linear", "seconds"),
    [
        pytest.param("int4", LinearFacts(1024, 1024, 1), 64e-9, id="4-bits"),
        pytest.param("int4", LinearFacts(1024, 1000, 1), 128e-9, id="no-whole-groups"),
        pytest.param("int4", LinearFacts(1024, 1024, 1, per_position=False), 2e-9, id="the-head"),
        pytest.param("int8", LinearFacts(1024, 1024, 1, per_position=False), 1e-9, id="the-head-beside-8-bits"),
        pytest.param("int4", LinearFacts(64, 64, 256, per_position=False), 1e-9, id="too-small-for-either"),
    ],
)
def test_what_stays_in_8_bits(layout: str, linear: LinearFacts, seconds: float) -> None:
    """Where most weights have 4 bits, those that stay in 8 take the time of products by 8."""
    routes = replace(ROUTES, layout=layout, in_8_bits=(2e-9, 4e-9, 128e-9))
    found = prefill_seconds(IN_FLOAT32, routes, f.device(), model(linear), 512)
    assert found == pytest.approx(linear.numel * seconds)


def test_prefill_counts_attention() -> None:
    """Two products of all tokens with all tokens for every head, at the rate that was measured for attention."""
    cache = CacheShape(layers=2, kv_heads=4, head_dim=8, attention_heads=4)
    attention = f.verdict(FLOAT32, VerdictKind.NATIVE, 1, 10, op="attention")
    device = f.device(extra=(attention,))
    without = prefill_seconds(IN_FLOAT32, ROUTES, f.device(), model(BODY, cache=cache), 512)
    seconds = prefill_seconds(IN_FLOAT32, ROUTES, device, model(BODY, cache=cache), 512)
    assert seconds is not None
    assert without is not None
    assert seconds - without == pytest.approx(4 * 512 * 512 * 4 * 8 * 2 / 10e9)


def test_prefill_counts_attention_in_chunks() -> None:
    """Where the plan has attention in chunks, it is at the rate of those, in the dtype of the cache."""
    cache = CacheShape(layers=2, kv_heads=4, head_dim=8, attention_heads=4)
    rates = [
        f.verdict(FLOAT32, VerdictKind.NATIVE, 1, rate, op=op)
        for op, rate in (("attention", 10), ("attention_chunks", 20))
    ]
    device = f.device(extra=tuple(rates))
    own, chunks = (
        prefill_seconds(IN_FLOAT32, routes, device, model(BODY, cache=cache), 512)
        for routes in (ROUTES, replace(ROUTES, chunks=True))
    )
    assert own is not None
    assert chunks is not None
    assert own - chunks == pytest.approx(4 * 512 * 512 * 4 * 8 * 2 / 20e9)


@pytest.mark.parametrize(("own", "row", "rate"), [(1, 4, 4), (4, 1, 4)], ids=["quicker", "no-quicker"])
def test_decode_reads_the_cache_in_the_quicker_form(own: float, row: float, rate: float) -> None:
    """One row of attention is planned in the form in which steps compute it."""
    cache = CacheShape(layers=2, kv_heads=2, head_dim=8, attention_heads=2)
    forms = (("attention", own), ("attention_row", row))
    device = f.device(extra=tuple(f.verdict(BFLOAT16, VerdictKind.NATIVE, gb, 10, op=op) for op, gb in forms))
    seconds = decode_seconds(BFLOAT16, ROUTES, device, model(BODY, cache=cache), 100)
    assert seconds == pytest.approx(1e6 * 1e-9 + cache.numel_per_token * 100 * 2 / (rate * 1e9))


def test_decode_reads_weights_and_cache() -> None:
    """A token reads every active weight once, and keys and values of what came before once for every query head."""
    cache = CacheShape(layers=2, kv_heads=2, head_dim=8, attention_heads=4)
    device = f.device(float32=(VerdictKind.NATIVE, 1, 10))
    seconds = decode_seconds(FLOAT32, ROUTES, device, model(BODY, EXPERTS, cache=cache), context=100)
    assert seconds == pytest.approx(3e6 * 1e-9 + 2 * 2 * 2 * 8 * 100 * 2 * 4 / 1e9)


def test_elementwise_calls() -> None:
    """Small calls are counted in norms: at one row their number decides, at many rows the activations' size."""
    norm = replace(
        f.verdict(FLOAT32, VerdictKind.NATIVE, 1, 1, op="layer_norm"),
        timings=(Timing(1, (0, 1000), 1e-6), Timing(512, (0, 1000), 6e-6)),
    )
    device = f.device(extra=(norm,))
    checkpoint = replace(model(BODY, cache=CacheShape(layers=3)), hidden_size=2000)
    calls = 200 * 3
    one = decode_seconds(FLOAT32, ROUTES, device, checkpoint, 0)
    many = prefill_seconds(IN_FLOAT32, ROUTES, device, checkpoint, 512)
    assert one == pytest.approx(1e6 * 1e-9 + calls * 1e-6)
    assert many == pytest.approx(1e6 * 64e-9 + calls * (1e-6 + 5e-6 * 2))


def test_without_rates() -> None:
    """Where nothing was measured there are no seconds, and bytes all the same."""
    cost = predict(IN_FLOAT32, None, f.device(), model(BODY), Workload())
    assert (cost.prefill_seconds, cost.decode_seconds, cost.seconds) == (None, None, None)
    assert cost.weight_bytes == 4 * 10**6


def test_an_encoder_does_not_decode() -> None:
    """Without a cache the call is the whole workload, whatever number of new tokens is asked for."""
    cost = predict(IN_FLOAT32, ROUTES, f.device(), model(BODY), Workload(512, 128))
    assert (cost.decode_seconds, cost.cache_bytes) == (0.0, 0)


def test_cache_bytes() -> None:
    """Keys and values of prompt and answer, in the dtype that activations are held in."""
    cache = CacheShape(layers=2, kv_heads=2, head_dim=8, attention_heads=4)
    for dtype in (FLOAT32, BFLOAT16):
        cost = predict(Candidate(dtype, dtype), ROUTES, f.device(), model(BODY, cache=cache), Workload(100, 28))
        assert cost.cache_bytes == 2 * 2 * 2 * 8 * 128 * dtype.itemsize


@pytest.mark.parametrize(
    ("tensor", "storage", "itemsize"),
    [
        pytest.param(("layers.0.weight", "float32"), BFLOAT16, 2, id="cast"),
        pytest.param(("layers.0.wo.weight", "bfloat16"), FLOAT16, 4, id="kept-in-float32-under-float16"),
        pytest.param(("layers.0.wo.weight", "bfloat16"), BFLOAT16, 2, id="and-not-under-bfloat16"),
        pytest.param(("layers.0.router.weight", "bfloat16"), BFLOAT16, 4, id="strictly-kept"),
        pytest.param(("positions", "int64"), BFLOAT16, 8, id="integers-as-they-are"),
        pytest.param(("mask", "bool"), BFLOAT16, 1, id="booleans"),
    ],
)
def test_weight_bytes(tensor: tuple[str, str], storage: Dtype, itemsize: int) -> None:
    """Weights count in the dtype that they are loaded in, those that stay in float32 and integers in their own."""
    name, dtype = tensor
    checkpoint = replace(
        f.checkpoint(BFLOAT16),
        tensors=(TensorFacts(name, dtype, (3, 5), "model.safetensors"),),
        keep_in_fp32=("wo",),
        keep_in_fp32_strict=("router",),
    )
    assert weight_bytes(storage, checkpoint) == 15 * itemsize


@pytest.mark.parametrize(
    ("stored", "island"),
    [
        pytest.param("model.layers.0.mlp", "model.layers.0.mlp", id="the-same"),
        pytest.param("model.layers.0.mlp", "layers.0.mlp", id="named-without-a-head"),
        pytest.param("layers.0.mlp", "model.layers.0.mlp", id="stored-without-a-head"),
    ],
)
def test_islands_take_four_bytes(stored: str, island: str) -> None:
    """What an island holds counts in float32, whichever model its name was read from; its neighbours in float16."""
    names = (f"{stored}.up_proj.weight", f"{stored}_norm.weight")
    tensors = tuple(TensorFacts(name, "bfloat16", (3, 5), "model.safetensors") for name in names)
    half = replace(f.rescued(), islands=(island,))
    assert weight_bytes(FLOAT16, replace(f.checkpoint(BFLOAT16, half=half), tensors=tensors)) == 15 * (4 + 2)


def test_blocks_in_place_of_float32_weights() -> None:
    """Float32 weights that are laid out in blocks of 16 bit are kept in the blocks alone."""
    blocks = replace(ROUTES, layout="blocks", wide=FLOAT32)
    narrow = Candidate(FLOAT32, BFLOAT16)
    device: DeviceFacts = f.device()
    assert predict(narrow, blocks, device, model(BODY), Workload()).weight_bytes == 2 * 10**6
    assert predict(narrow, ROUTES, device, model(BODY), Workload()).weight_bytes == 4 * 10**6
