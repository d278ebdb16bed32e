"""What a candidate would take: seconds from the measured rates, bytes from the checkpoint's shapes."""

from __future__ import annotations

import re

from ..dtypes import FLOAT32, Dtype
from ..facts import CacheShape, CheckpointFacts, DeviceFacts, TensorFacts
from .plan import Candidate, Cost
from .policy import Workload

# What transformers keeps alive of a layer while it computes the next: the residual, its norm, the two inner
# products of the MLP and the four of attention, all for every position of the prompt. Measured with Qwen3.
_LIVE_HIDDEN = 6
_LIVE_INNER = 3


def predict(candidate: Candidate, device: DeviceFacts, checkpoint: CheckpointFacts, workload: Workload) -> Cost:
    """Return the cost of the workload for one candidate."""
    prefill = prefill_seconds(candidate.compute, device, checkpoint, workload.prompt_tokens)
    # Without a cache (encoders, vision) there is no decoding: the call is the workload.
    new_tokens = workload.new_tokens if checkpoint.cache.layers else 0
    tokens = workload.prompt_tokens + new_tokens
    one_token = decode_seconds(candidate.storage, device, checkpoint, workload.prompt_tokens + new_tokens // 2)
    return Cost(
        prefill_seconds=prefill,
        decode_seconds=None if one_token is None else one_token * new_tokens,
        weight_bytes=weight_bytes(candidate.storage, checkpoint),
        cache_bytes=checkpoint.cache.numel_per_token * tokens * candidate.compute.itemsize,
        work_bytes=max(
            _activation_bytes(candidate.compute, checkpoint, workload.prompt_tokens),
            max((tensor.numel for tensor in checkpoint.tensors), default=0) * candidate.storage.itemsize,
        ),
    )


def prefill_seconds(dtype: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts, tokens: int) -> float | None:
    """Predict one forward pass over `tokens` positions: matrix products, then attention where it was measured."""
    matmul = device.verdict(dtype)
    if not matmul.prefill_flops_per_s or not matmul.decode_bytes_per_s:
        return None
    body = sum(one.numel * one.active for one in checkpoint.linears if one.per_position)
    head = sum(one.numel for one in checkpoint.linears if not one.per_position)
    seconds = 2 * body * tokens / matmul.prefill_flops_per_s + head * dtype.itemsize / matmul.decode_bytes_per_s
    attention = device.verdict(dtype, "attention").prefill_flops_per_s
    if attention:
        seconds += _attention_flops(checkpoint.cache, tokens) / attention
    return seconds


def decode_seconds(dtype: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts, context: int) -> float | None:
    """Predict one token after `context` others: every active weight and the whole cache are read once.

    The cache is read at attention's rate, which on a CPU without 16-bit arithmetic is a tenth of float32's. Query
    heads that share keys read them once each: transformers repeats the keys.
    """
    rate = device.verdict(dtype).decode_bytes_per_s
    if not rate:
        return None
    cache = checkpoint.cache
    shared = cache.attention_heads / cache.kv_heads if cache.kv_heads else 0
    attention_rate = device.verdict(dtype, "attention").decode_bytes_per_s or rate
    weights = sum(one.numel * one.active for one in checkpoint.linears)
    return (weights / rate + cache.numel_per_token * context * shared / attention_rate) * dtype.itemsize


def weight_bytes(storage: Dtype, checkpoint: CheckpointFacts) -> int:
    """Return the bytes of all tensors loaded in `storage`, the kept-in-float32 ones and the integers as they are."""
    return sum(tensor.numel * _itemsize(tensor, storage, checkpoint) for tensor in checkpoint.tensors)


def _itemsize(tensor: TensorFacts, storage: Dtype, checkpoint: CheckpointFacts) -> int:
    if integer := re.fullmatch(r"u?int(\d+)|bool", tensor.dtype):
        return max(1, int(integer[1] or 8) // 8)
    kept = checkpoint.keep_in_fp32_strict + (checkpoint.keep_in_fp32 if storage.name == "float16" else ())
    # Unanchored, as transformers matches them.
    if any(re.search(pattern, tensor.name) for pattern in kept):
        return FLOAT32.itemsize
    return storage.itemsize


def _attention_flops(cache: CacheShape, tokens: int) -> int:
    # Scores and their product with the values: 2 products of 2 flops; kernels compute the masked half too or not,
    # and the measured rate counts the same way.
    return 4 * tokens * tokens * cache.attention_heads * cache.head_dim * cache.layers


def _activation_bytes(compute: Dtype, checkpoint: CheckpointFacts, tokens: int) -> int:
    inner = max((one.out_features for one in checkpoint.linears if one.per_position), default=0)
    live = _LIVE_HIDDEN * checkpoint.hidden_size + _LIVE_INNER * inner
    return tokens * live * compute.itemsize + checkpoint.vocab_size * FLOAT32.itemsize
