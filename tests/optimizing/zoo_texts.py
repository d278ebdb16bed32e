"""The models of the zoo that read texts, or speech."""

from __future__ import annotations

import torch
import transformers as tf
from optimizing.zoo_inputs import VOCABULARY, Inputs, ids, seeded, text
from torch import nn

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def qwen3() -> nn.Module:
    """Return a Qwen3."""
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**_DECODER, head_dim=8))


def mixtral(experts: str) -> nn.Module:
    """Return a Mixtral whose experts are called as `experts` says."""
    model = tf.MixtralForCausalLM(tf.MixtralConfig(**_DECODER, num_local_experts=4))
    model.set_experts_implementation(experts)
    return model


def jetmoe() -> nn.Module:
    """Return a JetMoe: counted as many graphs, and captured whole."""
    config = tf.JetMoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_key_value_heads=2,
        kv_channels=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
    )
    return tf.JetMoeForCausalLM(config)


def dbrx() -> nn.Module:
    """Return a Dbrx, whose experts are a loop over those that are hit."""
    config = tf.DbrxConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        initializer_range=0.2,
    )
    return tf.DbrxForCausalLM(config)


def switch() -> nn.Module:
    """Return a Switch encoder-decoder."""
    config = tf.SwitchTransformersConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        num_experts=4,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
    )
    return tf.SwitchTransformersForConditionalGeneration(config)


def longformer() -> nn.Module:
    """Return a Longformer, which asks whether any attention is global."""
    config = tf.LongformerConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        attention_window=[4],
        max_position_embeddings=64,
        pad_token_id=1,
    )
    return tf.LongformerForMaskedLM(config)


def text_and_global(seed: int, batch: int, length: int) -> Inputs:
    """The held-out inputs take the other branch: they attend globally to their first token."""
    attends = torch.zeros(batch, length, dtype=torch.long)
    attends[:, 0] = seed > 1
    return text(seed, batch, length) | {
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "global_attention_mask": attends,
    }


def whisper() -> nn.Module:
    """Return a Whisper."""
    config = tf.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=20,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return tf.WhisperForConditionalGeneration(config)


def speech(seed: int, batch: int, length: int) -> Inputs:
    """Return features, shape (batch, 16, 40), and ids for the decoder."""
    return {
        "input_features": torch.randn(batch, 16, 40, generator=seeded(seed)),
        "decoder_input_ids": ids(seed, batch, length),
    }
