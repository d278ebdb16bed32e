"""What a candidate would take: seconds from the measured rates, bytes from the checkpoint's shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..facts import (
    CODES,
    FLOAT16,
    FLOAT32,
    INT4,
    LEAST_NARROWED,
    CacheShape,
    CheckpointFacts,
    DeviceFacts,
    Dtype,
    LinearFacts,
    TensorFacts,
)
from .matmul_routes import CHUNKS, Routes
from .mixed_dtypes import is_kept
from .plan import Candidate, Cost
from .policy import Workload

# What transformers keeps alive of a layer while it computes the next: the residual, its norm, the two inner
# products of the MLP and the four of attention, all for every position of the prompt. Measured with Qwen3.
_LIVE_HIDDEN = 6
_LIVE_INNER = 3
# Calls of a layer beside its products, counted in norms: residuals, rotations, gates, the cache. Measured with Qwen3
# at 1 and at 512 rows, in float32 and bfloat16.
_CALLS = 200


class _Parts(NamedTuple):
    """Where the seconds of one call go."""

    products: float  # with weights
    attention: float
    others: float


def predict(
    candidate: Candidate, routes: Routes | None, device: DeviceFacts, checkpoint: CheckpointFacts, workload: Workload
) -> Cost:
    """Return the cost of the workload for one candidate whose products take `routes`."""
    prompt = _prefill(candidate, routes, device, checkpoint, workload.prompt_tokens) if routes else None
    # Without a cache (encoders, vision) there is no decoding: the call is the workload.
    new_tokens = workload.new_tokens if checkpoint.cache.layers else 0
    tokens = workload.prompt_tokens + new_tokens
    context = workload.prompt_tokens + new_tokens // 2
    new_token = _decode(candidate.storage, routes, device, checkpoint, context) if routes else None
    cache_bytes = checkpoint.cache.numel_per_token * tokens * candidate.storage.itemsize
    on_its_way_in = max((tensor.numel for tensor in checkpoint.tensors), default=0) * candidate.storage.itemsize
    return Cost(
        prefill_seconds=sum(prompt) if prompt else None,
        decode_seconds=sum(new_token) * new_tokens if new_token else None,
        weight_bytes=_weight_bytes(candidate, routes, checkpoint),
        cache_bytes=cache_bytes,
        # While weights are loaded there is no cache yet.
        work_bytes=max(
            _activation_bytes(candidate.storage, checkpoint, workload.prompt_tokens), on_its_way_in - cache_bytes
        ),
        product_seconds=prompt.products + new_token.products * new_tokens if prompt and new_token else None,
        attention_seconds=prompt.attention + new_token.attention * new_tokens if prompt and new_token else None,
    )


def _weight_bytes(candidate: Candidate, routes: Routes | None, checkpoint: CheckpointFacts) -> int:
    whole = weight_bytes(_kept(candidate, routes), checkpoint)
    return whole if candidate.codes is None else whole - saved_by_codes(candidate.storage, candidate.codes, checkpoint)


def saved_by_codes(storage: Dtype, codes: Dtype, checkpoint: CheckpointFacts) -> int:
    """Return how many bytes less the weights take where linear ones are rounded to codes, or float32 ones held in 16 bit.

    Codes have their scales. A weight that is looked up as well is read from its file then, or from what is held in its
    place: it takes no other memory than that.
    """
    return sum(
        linear.numel * storage.itemsize - held_bytes
        for linear in checkpoint.linears
        if linear.active == 1.0 and (held_bytes := _held_bytes(linear, storage, codes)) is not None
    )


def _held_bytes(linear: LinearFacts, storage: Dtype, codes: Dtype) -> int | None:
    """Return the bytes of what is held in the place of these weights; None where they stay as they are."""
    outputs, inputs = linear.out_features, linear.in_features
    if codes not in CODES:
        return linear.numel * codes.itemsize if outputs * inputs >= LEAST_NARROWED else None
    coding = linear.coding(codes)
    return None if coding is None else linear.count * coding.nbytes(outputs, inputs, storage.itemsize)


def _kept(candidate: Candidate, routes: Routes | None) -> Dtype:
    """Return the dtype of the weights that are kept in memory: of float32 ones with blocks in 16 bit the blocks."""
    in_blocks = routes is not None and routes.layout == "blocks"
    return candidate.compute if in_blocks and candidate.storage == FLOAT32 else candidate.storage


def prefill_seconds(
    candidate: Candidate, routes: Routes | None, device: DeviceFacts, checkpoint: CheckpointFacts, tokens: int
) -> float | None:
    """Predict one forward pass over `tokens` positions: products, attention where it was measured, and the rest."""
    return None if routes is None else sum(_prefill(candidate, routes, device, checkpoint, tokens))


def _prefill(
    candidate: Candidate, routes: Routes, device: DeviceFacts, checkpoint: CheckpointFacts, tokens: int
) -> _Parts:
    cast = routes.cast_from is not None and tokens >= routes.cast_from
    asked = (
        (candidate.storage, CHUNKS)
        if routes.chunks
        else (candidate.compute if cast else candidate.storage, "attention")
    )
    attention = device.verdict(*asked).prefill_flops_per_s
    return _Parts(
        products=_products(routes, checkpoint, tokens),
        attention=_attention_flops(checkpoint.cache, tokens) / attention if attention else 0.0,
        others=_elementwise_seconds(device, checkpoint, tokens),
    )


def decode_seconds(
    storage: Dtype, routes: Routes | None, device: DeviceFacts, checkpoint: CheckpointFacts, context: int
) -> float | None:
    """Predict one token after `context` others: every active weight and the whole cache are read once.

    The cache is read at attention's rate, which on a CPU is a tenth of float32's in 16 bit as torch's kernel is asked. Query
    heads that share keys read them once each: transformers repeats the keys.
    """
    return None if routes is None else sum(_decode(storage, routes, device, checkpoint, context))


def _decode(storage: Dtype, routes: Routes, device: DeviceFacts, checkpoint: CheckpointFacts, context: int) -> _Parts:
    cache = checkpoint.cache
    shared = cache.attention_heads / cache.kv_heads if cache.kv_heads else 0
    # A planned model computes one row of attention in 16 bit as "attention_row" does, or quicker.
    verdicts = (device.verdict(storage, op) for op in ("attention", "attention_row"))
    rates = [verdict.decode_bytes_per_s for verdict in verdicts if verdict.decode_bytes_per_s]
    rate = max(rates, default=device.verdict(storage).decode_bytes_per_s)
    return _Parts(
        products=_products(routes, checkpoint, 1),
        attention=cache.numel_per_token * context * shared * storage.itemsize / rate if rate else 0.0,
        others=_elementwise_seconds(device, checkpoint, 1),
    )


def _products(routes: Routes, checkpoint: CheckpointFacts, rows: int) -> float:
    """Predict the products with weights of so many rows; the output head computes one of them."""
    return sum(_product_seconds(linear, routes, rows if linear.per_position else 1) for linear in checkpoint.linears)


def _product_seconds(linear: LinearFacts, routes: Routes, rows: int) -> float:
    return linear.numel * linear.active * routes.seconds(rows, in_8_bits=_stays_in_8_bits(linear, routes))


def _stays_in_8_bits(linear: LinearFacts, routes: Routes) -> bool:
    """Whether these weights have 8 bits where most have 4."""
    coding = linear.coding(INT4) if routes.layout == INT4.name else None
    return coding is not None and coding.codes != INT4


def _elementwise_seconds(device: DeviceFacts, checkpoint: CheckpointFacts, rows: int) -> float:
    """Predict what is neither product nor attention: many small calls a layer, each like a norm.

    At one row they take the time of the calls, at many that of passing over the activations. Half the bytes and the
    conversions of 16 bit make up for each other, so float32's norm stands for every dtype.
    """
    timed = {one.rows: one for one in device.verdict(FLOAT32, "layer_norm").timings}
    if 1 not in timed or 512 not in timed or not timed[512].shape[1]:
        return 0.0
    one_row, many_rows = timed[1].seconds, timed[512].seconds
    widened = checkpoint.hidden_size / timed[512].shape[1]
    return _CALLS * checkpoint.cache.layers * (one_row + max(0.0, many_rows - one_row) * (rows - 1) / 511 * widened)


def weight_bytes(storage: Dtype, checkpoint: CheckpointFacts) -> int:
    """Return the bytes of all tensors loaded in `storage`, those kept in float32 and the codes as they are."""
    codes = {dtype: _code_bytes(dtype, checkpoint) for dtype in {tensor.dtype for tensor in checkpoint.tensors}}
    islands = checkpoint.half.islands if checkpoint.half and storage == FLOAT16 else ()
    in_islands = _in_files(islands, checkpoint)

    def itemsize(tensor: TensorFacts) -> int:
        if tensor.name.startswith(in_islands) or is_kept(tensor, storage, checkpoint):
            return FLOAT32.itemsize
        return storage.itemsize

    return sum(tensor.numel * (codes[tensor.dtype] or itemsize(tensor)) for tensor in checkpoint.tensors)


def _in_files(islands: Sequence[str], checkpoint: CheckpointFacts) -> tuple[str, ...]:
    """Return what the names of the tensors in these modules begin with.

    A model with a head and one without name the same module with a prefix and without, as files and recipes of both do.
    """
    if not islands:
        return ()
    paths = [tensor.name.split(".") for tensor in checkpoint.tensors]
    modules = {".".join(path[:end]) for path in paths for end in range(1, len(path))}
    outermost = sorted({path[0] for path in paths})

    def module(island: str) -> str:
        names = (island, *(f"{prefix}.{island}" for prefix in outermost), island.partition(".")[2])
        return next((name for name in names if name in modules), island)

    return tuple(f"{module(island)}." for island in islands)


def _code_bytes(dtype: str, checkpoint: CheckpointFacts) -> int | None:
    """Return the bytes of a number in a format that stays as it is; None for one that is cast."""
    if integer := re.fullmatch(r"u?int(\d+)|bool", dtype):
        return max(1, int(integer[1] or 8) // 8)
    return 1 if checkpoint.quantization and dtype.startswith("float8") else None


def _attention_flops(cache: CacheShape, tokens: int) -> int:
    # Scores and their product with the values: 2 products of 2 flops; kernels compute the masked half too or not,
    # and the measured rate counts the same way.
    return 4 * tokens * tokens * cache.attention_heads * cache.head_dim * cache.layers


def _activation_bytes(compute: Dtype, checkpoint: CheckpointFacts, tokens: int) -> int:
    inner = max((one.out_features for one in checkpoint.linears if one.per_position), default=0)
    live = _LIVE_HIDDEN * checkpoint.hidden_size + _LIVE_INNER * inner
    return tokens * live * compute.itemsize + checkpoint.vocab_size * FLOAT32.itemsize
