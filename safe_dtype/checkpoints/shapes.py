"""The shapes that cost time: weights that multiply activations, and the KV cache.

Read off names and shapes in the headers, without building the model. A wrong guess costs a worse prediction of speed,
never a wrong result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..facts import CacheShape, LinearFacts, TensorFacts
from .config import first, text_part

_LOOKED_UP = re.compile(
    r"embed|wte|wpe|shared\.weight|relative_attention_bias|token_type|\.bias$|norm|codebook|scale(_inv)?$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|proj_out|cls\.predictions\.decoder)\.weight$")
_EXPERT = re.compile(r"experts?\.")
_SHARED_EXPERT = re.compile(r"shared_expert")


def linears_of(tensors: Iterable[TensorFacts], config: Mapping[str, Any], *, tied: bool) -> tuple[LinearFacts, ...]:
    """Return the weights that multiply, gathered by shape; fused experts as many of one shape."""
    text = text_part(config)
    active = _active_share(text)
    counts: Counter[tuple[int, int, float, bool]] = Counter()
    for tensor in tensors:
        if len(tensor.shape) not in (2, 3) or _LOOKED_UP.search(tensor.name) or min(tensor.shape) < 2:
            continue
        if not tensor.dtype.startswith(("float", "bfloat")) and not tensor.name.endswith(".weight"):
            continue
        *many, out_features, in_features = tensor.shape
        if many and in_features <= 16:  # a 1-D convolution: (out, in, kernel)
            continue
        share = active if _EXPERT.search(tensor.name) and not _SHARED_EXPERT.search(tensor.name) else 1.0
        counts[out_features, in_features, share, not _HEAD.search(tensor.name)] += many[0] if many else 1
    if tied:
        vocabulary, hidden = (
            first(text, "vocab_size", default=0),
            first(text, "hidden_size", "d_model", "n_embd", default=0),
        )
        counts[vocabulary, hidden, 1.0, False] += 1 if vocabulary and hidden else 0
    return tuple(
        LinearFacts(out, inner, count, share, per_position)
        for (out, inner, share, per_position), count in counts.items()
        if count
    )


def _active_share(text: Mapping[str, Any]) -> float:
    experts = first(text, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    chosen = first(text, "num_experts_per_tok", "moe_topk", "top_k", "moe_top_k", "num_experts_per_token")
    return min(1.0, int(chosen) / int(experts)) if experts and chosen else 1.0


def is_tied(tensors: Iterable[TensorFacts], config: Mapping[str, Any], architecture: str | None) -> bool:
    """Whether the output head shares the embedding's weight: the architecture has a head, and the files hold none."""
    has_head = re.search(r"LMHead|For(CausalLM|ConditionalGeneration|SeqToSeq|MaskedLM)", architecture or "")
    wants = (
        first(config, "tie_word_embeddings") is not False
        and first(text_part(config), "tie_word_embeddings") is not False
    )
    return bool(has_head) and wants and not any(_HEAD.search(tensor.name) for tensor in tensors)


def cache_of(tensors: Iterable[TensorFacts], config: Mapping[str, Any], architecture: str | None) -> CacheShape:
    """Return what one token adds to the KV cache; nothing for encoders, recurrent models and vision.

    A config in memory names no architecture: then an output head tells a decoder.
    """
    text = text_part(config)
    heads = first(text, "num_attention_heads", "n_head", "decoder_attention_heads", "num_heads")
    hidden = first(text, "hidden_size", "d_model", "n_embd")
    layers = first(text, "decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers")
    if architecture is None:
        generates = any(_HEAD.search(tensor.name) for tensor in tensors)
    else:
        generates = re.search(r"CausalLM|LMHead|ConditionalGeneration|Generation|Seq2Seq", architecture) is not None
    if not generates or not all(isinstance(one, int) for one in (heads, hidden, layers)):
        return CacheShape()
    head_dim = first(text, "head_dim", "d_kv", default=hidden // heads)
    return CacheShape(layers, first(text, "num_key_value_heads", default=heads), head_dim, heads)
