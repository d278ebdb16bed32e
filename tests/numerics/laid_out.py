"""Models whose linear weights are large enough to be laid out, as files and as `from_pretrained` returns them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

# Of all tests of modules that multiply in blocks.
MARKS = [
    pytest.mark.needs("pagemap"),
    # Of torch, about what is tried there.
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
]

IDS = torch.arange(3, 23)[None]

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def _qwen3(*, tied: bool) -> Any:
    config = tf.Qwen3Config(
        vocab_size=1000, hidden_size=512, intermediate_size=640, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=tied, **_TOKENS,
    )  # fmt: skip
    return tf.Qwen3ForCausalLM(config)


def _t5() -> Any:
    config = tf.T5Config(
        vocab_size=1000, d_model=512, d_kv=64, d_ff=1024, num_layers=1, num_heads=8, decoder_start_token_id=0
    )
    return tf.T5ForConditionalGeneration(config)


def _gpt2() -> Any:
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=1000, n_embd=512, n_layer=1, n_head=8, **_TOKENS))


def _opt() -> Any:
    config = tf.OPTConfig(
        vocab_size=1000, hidden_size=512, ffn_dim=1024, num_hidden_layers=1, num_attention_heads=8,
        word_embed_proj_dim=512, **_TOKENS,
    )  # fmt: skip
    return tf.OPTForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "qwen3-tied": lambda: _qwen3(tied=True),
    "qwen3-untied": lambda: _qwen3(tied=False),
    "t5": _t5,
    "gpt2": _gpt2,
    "opt": _opt,  # has biases
}


def save(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save a seeded model with weights in `dtype`; its norms and biases are no constants."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for one in model.parameters():
            if one.dim() == 1:
                one.add_(torch.randn_like(one) * 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def cast_up(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save a model in float32 whose numbers are those of a 16-bit format."""
    load(save(name, folder / "narrow", dtype)).float().save_pretrained(folder / "wide")
    return folder / "wide"


def load(folder: Path) -> Any:
    """Load it in its saved dtype, so that its weights are views of the file."""
    config = tf.AutoConfig.from_pretrained(folder)
    return getattr(tf, config.architectures[0]).from_pretrained(folder, dtype="auto").eval()


def logits(model: Any, rows: int = 20) -> Tensor:
    """Return the logits of one forward pass without gradients."""
    with torch.no_grad():
        return model(input_ids=IDS[:, :rows]).logits


def near(found: Tensor, expected: Tensor, limit: float = 0.02) -> bool:
    """Whether the root mean squared difference is within some roundings of bfloat16."""
    return float((found.double() - expected.double()).norm()) <= limit * float(expected.double().norm())
