"""A model that is large enough to be rounded for its memory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM


def save_larger(folder: Path, with_tokenizer_of: Path, saved: torch.dtype) -> Path:
    """Save 17 million seeded bfloat16 numbers in a dtype, with a tokenizer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=2048, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).bfloat16().to(saved).save_pretrained(folder)
    AutoTokenizer.from_pretrained(with_tokenizer_of).save_pretrained(folder)
    return folder
