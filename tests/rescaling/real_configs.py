"""The configs of published checkpoints, in full size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as tf


@dataclass(frozen=True)
class Real:
    """A class of transformers, and the sizes of a published checkpoint of it."""

    model_class: Any
    config: Callable[[], Any]
    heads: tuple[int, int] | None = None  # query and key-value heads of its twin


def _llama3_8b() -> Any:
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return tf.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_parameters=rope,
        bos_token_id=128000, eos_token_id=[128001, 128008, 128009],
    )  # fmt: skip


def _qwen2_7b() -> Any:
    return tf.Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_window_layers=28, eos_token_id=151643,
    )  # fmt: skip


def _qwen3_600m() -> Any:
    return tf.Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_window_layers=28, tie_word_embeddings=True, eos_token_id=151645,
    )  # fmt: skip


def _gemma3_1b() -> Any:
    return tf.Gemma3TextConfig(
        vocab_size=262144, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
    )  # fmt: skip


def _gpt_oss_20b() -> Any:
    return tf.GptOssConfig(
        vocab_size=201088, hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_local_experts=32,
        num_experts_per_tok=4, num_attention_heads=64, num_key_value_heads=8, head_dim=64, sliding_window=128,
        pad_token_id=199999, eos_token_id=200002,
    )  # fmt: skip


def _mixtral_8x7b() -> Any:
    return tf.MixtralConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, sliding_window=None,
    )  # fmt: skip


def _deepseek_v3() -> Any:
    return tf.DeepseekV3Config(
        vocab_size=129280, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, num_hidden_layers=61,
        num_attention_heads=128, num_key_value_heads=128, n_routed_experts=256, n_group=8, topk_group=4,
        num_experts_per_tok=8, first_k_dense_replace=3, q_lora_rank=1536, kv_lora_rank=512,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
        },
    )  # fmt: skip


def _mamba2_3b() -> Any:
    return tf.Mamba2Config(
        vocab_size=50288, hidden_size=2560, num_hidden_layers=64, num_heads=80, head_dim=64, state_size=128, n_groups=1,
        expand=2, tie_word_embeddings=True,
    )  # fmt: skip


def _phi3_mini() -> Any:
    return tf.Phi3Config(
        vocab_size=32064, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=131072, original_max_position_embeddings=4096, sliding_window=262144,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 48, "long_factor": [4.0] * 48,
            "original_max_position_embeddings": 4096,
        },
    )  # fmt: skip


def _olmo2_7b() -> Any:
    return tf.Olmo2Config(
        vocab_size=100352, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        pad_token_id=100277, eos_token_id=100257,
    )  # fmt: skip


def _falcon_7b() -> Any:
    return tf.FalconConfig(
        vocab_size=65024, hidden_size=4544, num_hidden_layers=32, num_attention_heads=71, multi_query=True,
        parallel_attn=True, bias=False, alibi=False, new_decoder_architecture=False,
    )  # fmt: skip


def _t5_base() -> Any:
    return tf.T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)


def _whisper_small() -> Any:
    return tf.WhisperConfig(
        d_model=768, encoder_layers=12, decoder_layers=12, encoder_attention_heads=12, decoder_attention_heads=12,
        encoder_ffn_dim=3072, decoder_ffn_dim=3072,
    )  # fmt: skip


def _jamba() -> Any:
    return tf.JambaConfig(use_mamba_kernels=False)


def _gemma3_4b() -> Any:
    return tf.Gemma3Config(
        text_config={
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256,
        },
        vision_config={
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 896,
        },
    )  # fmt: skip


LFM2_MOE = ["conv", "conv", "full_attention", "conv", "conv", "conv"] * 4

REAL = {
    "bert": Real(tf.BertModel, tf.BertConfig),
    "bert-classifier": Real(tf.BertForSequenceClassification, lambda: tf.BertConfig(num_labels=3)),
    "deepseek_v3": Real(tf.DeepseekV3ForCausalLM, _deepseek_v3),
    "distilbert": Real(tf.DistilBertModel, tf.DistilBertConfig),
    "falcon": Real(tf.FalconForCausalLM, _falcon_7b),
    "gemma3": Real(tf.Gemma3ForConditionalGeneration, _gemma3_4b),
    "gemma3_text": Real(tf.Gemma3ForCausalLM, _gemma3_1b, (4, 1)),
    "gpt_oss": Real(tf.GptOssForCausalLM, _gpt_oss_20b, (8, 1)),
    "jamba": Real(tf.JambaForCausalLM, _jamba, (8, 2)),
    "lfm2_moe": Real(
        tf.Lfm2MoeForCausalLM, lambda: tf.Lfm2MoeConfig(num_hidden_layers=24, layer_types=LFM2_MOE), (8, 2)
    ),
    "llama": Real(tf.LlamaForCausalLM, _llama3_8b, (8, 2)),
    "mamba2": Real(tf.Mamba2ForCausalLM, _mamba2_3b),
    "mixtral": Real(tf.MixtralForCausalLM, _mixtral_8x7b, (8, 2)),
    "olmo2": Real(tf.Olmo2ForCausalLM, _olmo2_7b, (4, 4)),
    "phi3": Real(tf.Phi3ForCausalLM, _phi3_mini, (4, 4)),
    "qwen2": Real(tf.Qwen2ForCausalLM, _qwen2_7b, (7, 1)),
    "qwen3": Real(tf.Qwen3ForCausalLM, _qwen3_600m, (4, 2)),
    "t5": Real(tf.T5ForConditionalGeneration, _t5_base),
    "vit": Real(tf.ViTModel, tf.ViTConfig),
    "whisper": Real(tf.WhisperForConditionalGeneration, _whisper_small),
}
if hasattr(tf, "KimiLinearForCausalLM"):  # not in transformers 5.16
    REAL["kimi_linear"] = Real(tf.KimiLinearForCausalLM, tf.KimiLinearConfig)
