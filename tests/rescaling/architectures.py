"""Configs of well-known architectures, small ones but of realistic proportions."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as tf

from safe_dtype.facts import Gauge, Move
from safe_dtype.rescaling.discovery.discover import Discovery, discover
from safe_dtype.rescaling.discovery.twin import Twin, make_twin

_TEXT = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_TEXT, "num_key_value_heads": 2}

_EXPERTS = {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
_OPT = {
    "vocab_size": 96, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "word_embed_proj_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
_T5 = {
    "vocab_size": 96, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
_JAMBA = {
    **_GROUPED, "attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "num_experts": 4, "mamba_d_state": 8, "use_mamba_kernels": False,
}  # fmt: skip

# A class, its config, and the arguments of that.
ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, _GROUPED),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config, {**_GROUPED, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen2": (tf.Qwen2ForCausalLM, tf.Qwen2Config, _GROUPED),
    "gemma3": (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, {**_GROUPED, "head_dim": 16}),
    "phi3": (tf.Phi3ForCausalLM, tf.Phi3Config, _GROUPED),
    "gpt_oss": (tf.GptOssForCausalLM, tf.GptOssConfig, {**_EXPERTS, "head_dim": 16}),
    "mixtral": (tf.MixtralForCausalLM, tf.MixtralConfig, _EXPERTS),
    "nemotron": (tf.NemotronForCausalLM, tf.NemotronConfig, {**_GROUPED, "head_dim": 16}),
    "olmo": (tf.OlmoForCausalLM, tf.OlmoConfig, _TEXT),
    "olmo-clipped": (tf.OlmoForCausalLM, tf.OlmoConfig, {**_TEXT, "clip_qkv": 8.0}),
    "olmo2": (tf.Olmo2ForCausalLM, tf.Olmo2Config, _TEXT),
    "opt": (tf.OPTForCausalLM, tf.OPTConfig, _OPT),
    "bert": (tf.BertForMaskedLM, tf.BertConfig, _TEXT),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config, _T5),
    "jamba": (tf.JambaForCausalLM, tf.JambaConfig, _JAMBA),
}


def config_of(name: str, **other: Any) -> Any:
    """Return the config of an architecture, with other values for some keys."""
    _, make, values = ARCHITECTURES[name]
    return make(**{**values, **other})


@cache
def twin_of(name: str) -> Twin:
    """Return the twin of an architecture, which nobody may change."""
    return make_twin(ARCHITECTURES[name][0], config_of(name))


@cache
def found_in(name: str) -> Discovery:
    """Return what there is to discover in an architecture."""
    return discover(twin_of(name))


def gauge_of(name: str, called: str) -> Gauge:
    """Return the gauge of an architecture that has this name.

    Raises:
        StopIteration: If there is none.
    """
    return next(one.gauge for one in found_in(name).proved if one.gauge.name == called)


def real_model(name: str, **other: Any) -> Any:
    """Return a model of an architecture in float32 with random weights, with other sizes than its twin."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name][0]._from_config(config_of(name, **other)).eval()
    with torch.no_grad():
        for one in model.parameters():
            one += 0.1 * torch.randn_like(one)
    return model


def without(gauge: Gauge, move: Move) -> Gauge:
    """Return the gauge that lacks a move."""
    return Gauge(gauge.name, tuple(one for one in gauge.moves if one is not move))
