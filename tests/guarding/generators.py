"""Tiny models that generate, one a kind of cache and of state, and one run of them that can be compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from tiny_models import TINY

from safe_dtype.facts.cache_names import cache_parameter
from safe_dtype.models.recast import recast

NEW_TOKENS = 10
DOWN = "model.layers.1.mlp.down_proj"  # where most faults are put
IDS = torch.tensor([[0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])
MASK = (IDS != 0).long()  # the first row is padded on the left
ONE_ROW = {"input_ids": IDS[1:], "attention_mask": MASK[1:]}
BOTH_ROWS = {"input_ids": IDS, "attention_mask": MASK}

_TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
_SLIDING = {
    "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "head_dim": 8,
}  # fmt: skip
_STATE = {"mamba_d_state": 8, "use_mamba_kernels": False}
_MAMBA = {"vocab_size": 97, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3, "pad_token_id": 0}


def _qwen3_next() -> Any:
    return tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(
            **_TEXT, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        )
    )  # fmt: skip


def _zamba2() -> Any:
    return tf.Zamba2ForCausalLM(
        tf.Zamba2Config(
            **_TEXT | {"num_hidden_layers": 4}, **_STATE, mamba_ngroups=1, n_mamba_heads=8, mamba_headdim=8,
            chunk_size=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], num_mem_blocks=1,
        )
    )  # fmt: skip


def _deepseek_v3() -> Any:
    return tf.DeepseekV3ForCausalLM(
        tf.DeepseekV3Config(
            **_TEXT | {"num_key_value_heads": 4}, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
            moe_intermediate_size=32, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8,
            qk_nope_head_dim=8, first_k_dense_replace=1,
        )
    )  # fmt: skip


def _gemma3n() -> Any:
    kinds = ["sliding_attention", "full_attention"] * 2
    return tf.Gemma3nForCausalLM(
        tf.Gemma3nTextConfig(
            **_TEXT | {"num_hidden_layers": 4}, **_SLIDING | {"layer_types": kinds}, num_kv_shared_layers=1,
            hidden_size_per_layer_input=8, vocab_size_per_layer_input=97, laurel_rank=4,
            activation_sparsity_pattern=[0.0] * 4,
        )
    )  # fmt: skip


def _bart() -> Any:
    return tf.BartForConditionalGeneration(
        tf.BartConfig(
            vocab_size=97, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
            init_std=0.3, eos_token_id=None, forced_eos_token_id=None, decoder_start_token_id=1,
        )
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_TEXT, head_dim=8, tie_word_embeddings=True)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_TEXT, head_dim=8, sliding_window=4)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**_TEXT, **_SLIDING)),
    "gemma3n": _gemma3n,
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**_TEXT, num_local_experts=4)),
    "gpt_oss": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(**_TEXT, **_SLIDING, num_local_experts=4)),
    "deepseek_v3": _deepseek_v3,
    "mamba": lambda: tf.MambaForCausalLM(tf.MambaConfig(**_MAMBA)),
    "mamba2": lambda: tf.Mamba2ForCausalLM(
        tf.Mamba2Config(**_MAMBA, num_heads=8, head_dim=8, n_groups=1, chunk_size=4)
    ),
    "falcon_h1": lambda: tf.FalconH1ForCausalLM(
        tf.FalconH1Config(
            **_TEXT, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8,
            mamba_chunk_size=4,
        )
    ),
    "jamba": lambda: tf.JambaForCausalLM(
        tf.JambaConfig(**_TEXT, **_STATE, num_experts=2, attn_layer_period=2, attn_layer_offset=1)
    ),
    "zamba2": _zamba2,
    "lfm2": lambda: tf.Lfm2ForCausalLM(tf.Lfm2Config(**_TEXT, layer_types=["conv", "full_attention", "conv"])),
    "qwen3_next": _qwen3_next,
    "recurrent_gemma": lambda: tf.RecurrentGemmaForCausalLM(
        tf.RecurrentGemmaConfig(**_TEXT | {"num_key_value_heads": 1}, lru_width=32, attention_window_size=8)
    ),
    "rwkv": lambda: tf.RwkvForCausalLM(
        tf.RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, context_length=64)
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, decoder_start_token_id=0,
            eos_token_id=None,
        )
    ),
    "bart": _bart,
}  # fmt: skip


def generator(name: str = "qwen3", dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a seeded model in `dtype` that stops only after NEW_TOKENS."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    recast(model, {torch.float32}, dtype)
    model.generation_config.update(eos_token_id=None, pad_token_id=0)
    return model


@dataclass(frozen=True)
class Run:
    """Everything that a generation gives, and the random state that it leaves."""

    tensors: tuple[torch.Tensor, ...]
    random: torch.Tensor
    cache: Any

    def differs(self, other: Run) -> list[int]:
        """Return the places of the tensors in which the two runs differ; the random state is the last one."""
        mine, theirs = (*self.tensors, self.random), (*other.tensors, other.random)
        if len(mine) != len(theirs):
            return [-1]
        return [place for place, (a, b) in enumerate(zip(mine, theirs, strict=True)) if not torch.equal(a, b)]


def generate(model: Any, **options: Any) -> Run:
    """Generate from a seed with everything returned."""
    torch.manual_seed(1)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    with torch.no_grad():
        found = model.generate(**options, return_dict_in_generate=True, output_logits=True, output_scores=True)
    tensors: list[torch.Tensor] = []
    for name, value in found.items():
        if name in ("logits", "scores"):
            tensors += value
        elif name in ("sequences", "sequences_scores", "beam_indices"):
            tensors.append(value)
    return Run(tuple(tensors), torch.get_rng_state(), found.get("past_key_values"))


def tiny(name: str = "qwen3", dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a seeded tiny model in `dtype`, its unsaved buffers in float32."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    recast(model, {torch.float32}, dtype)
    return model


class Tape:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        """Take tokens."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Take the end."""
        self.ends += 1


class Unknown(tf.DynamicCache):
    """A cache of a class that nobody knows."""


def with_unknown_cache(model: Any) -> Any:
    """Have `generate` make a cache of that class."""
    prepare = model._prepare_cache_for_generation

    def prepare_unknown(config: Any, kwargs: dict[str, Any], *rest: Any) -> None:
        prepare(config, kwargs, *rest)
        kwargs[cache_parameter(model.forward)] = Unknown(config=model.config)

    model._prepare_cache_for_generation = prepare_unknown
    return model
