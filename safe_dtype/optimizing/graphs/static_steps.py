"""Steps of one token over a cache of fixed length, as transformers' `generate` makes them and compiles them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from ...facts.cache_names import cache_parameter
from ..nouns.job import Dynamic

POSITIONS = 1024  # of the cache, where no longer texts were asked for: attention looks at all of them in every step
BACKEND = "inductor"

_TAKEN = {"input_ids", "attention_mask"}
_WITH_GRAPHS_OF_KERNELS = ("cuda", "xpu")


def compile_config(model: Any, device: str) -> CompileConfig:
    """Return how a step of `model` is compiled: as one graph of fixed shapes.

    A cache with sliding windows counts its tokens in Python: where that number were fixed, each token had a graph of its own.
    """
    kind = device.partition(":")[0]
    config = CompileConfig(
        fullgraph=True, dynamic=None if _slides(model) else False, backend=BACKEND,
        mode="reduce-overhead" if kind in _WITH_GRAPHS_OF_KERNELS else "default",
    )  # fmt: skip
    config._compile_all_devices = True  # transformers compiles on a CPU only where asked to
    return config


def static_length(model: Any, dynamic: Dynamic) -> int:
    """Return how many positions the cache holds: the longest text that was asked for, else `POSITIONS`.

    Never more than the model knows.
    """
    asked = max((high for _, high in (dynamic.of(name).get(1, (0, 0)) for name in _TAKEN)), default=0)
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(max(asked, POSITIONS), most or max(asked, POSITIONS))


def require_generator(model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    """Raise unless `model` generates text from tokens alone, with a cache that can be of fixed length.

    Raises:
        ValueError: With the reason.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ValueError(f"{name} has no generate")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} has an encoder: only models that are a decoder alone are compiled step by step")
    if others := sorted(inputs.keys() - _TAKEN):
        raise ValueError(f"{name} is given {', '.join(others)} beside its tokens")
    if not StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=2).is_compileable:
        raise ValueError(f"{name} has a cache of another kind, which no graph of fixed shapes takes")


def token_by_token(
    model: Any, step: Callable[..., Any], inputs: Mapping[str, torch.Tensor], cache: Cache
) -> dict[str, torch.Tensor]:
    """Return what the model answers to a batch, its logits (batch, length, vocabulary), computed token by token.

    Args:
        model: A causal language model.
        step: What computes each token but the first, which fills the cache: the model, or its compiled call.
        inputs: Of its forward: `input_ids` (batch, length), and `attention_mask` of the same shape.
        cache: An empty one. It holds the batch afterwards.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    known = inspect.signature(model.forward).parameters
    cache_argument = {cache_parameter(model.prepare_inputs_for_generation): cache}
    logits = []
    for place in range(ids.shape[1]):
        more: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        if "position_ids" in known:
            more["position_ids"] = torch.full_like(ids[:, :1], place)
        prepared = model.prepare_inputs_for_generation(
            ids[:, : place + 1], next_sequence_length=1, attention_mask=mask[:, : place + 1],
            is_first_iteration=not place, use_cache=True, **cache_argument, **more,
        )  # fmt: skip
        answer = (step if place else model)(**prepared, return_dict=True)
        logits.append(answer.logits[:, -1].clone())  # a graph of kernels writes its next answer over this one
    return {"logits": torch.stack(logits, 1)}


def eager_steps(model: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """Return what answers a batch token by token as `generate` does by itself: with a cache that grows."""
    config = model.config.get_text_config(decoder=True)
    return lambda **inputs: token_by_token(model, model, inputs, DynamicCache(config=config))


def compiled_steps(model: Any, positions: int, device: str) -> Callable[..., dict[str, torch.Tensor]]:
    """Return what answers a batch token by token by a compiled step, over a cache of so many positions.

    It raises a ValueError for a longer batch.
    """
    config = model.config.get_text_config(decoder=True)
    step = model.get_compiled_call(compile_config(model, device))

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if (length := inputs["input_ids"].shape[1]) > positions:
            raise ValueError(f"a text has {length} tokens, and the cache {positions} positions: ask for that length")
        return token_by_token(model, step, inputs, StaticCache(config=config, max_cache_len=positions))

    return run


def _slides(model: Any) -> bool:
    return any(StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=2).is_sliding)
