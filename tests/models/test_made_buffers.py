"""What loading makes and nobody saves is made once more in another dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import TINY

from safe_dtype.models.recast import recast

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("name", ["gemma2", "qwen3", "t5"])
@pytest.mark.parametrize(("before", "after"), [(BF16, FP32), (BF16, FP16), (FP16, FP32)])
def test_buffers_that_are_not_saved(name: str, before: torch.dtype, after: torch.dtype, tmp_path: Path) -> None:
    """What is made on loading is what a load in the new dtype makes: Gemma's scale of embeddings is not rounded twice."""
    folder = TINY[name].save(tmp_path / "model", BF16)
    loaded = getattr(transformers, TINY[name].make().__class__.__name__)
    model, fresh = (loaded.from_pretrained(folder, dtype=dtype) for dtype in (before, after))
    recast(model, {before}, after)
    assert dict(model.named_buffers()).keys() == dict(fresh.named_buffers()).keys()
    for key, buffer in fresh.named_buffers():
        assert buffer.dtype == model.get_buffer(key).dtype
        assert torch.equal(buffer, model.get_buffer(key)), key


def save_speech(folder: Path) -> Any:
    """Save a model whose tables of positions lie in modules with a dropout each; return its class."""
    torch.manual_seed(0)
    config = transformers.FastSpeech2ConformerConfig(
        hidden_size=32, vocab_size=20, encoder_layers=1, decoder_layers=1, encoder_linear_units=32, decoder_linear_units=32,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, speech_decoder_postnet_units=32,
        duration_predictor_channels=32, energy_predictor_channels=32, pitch_predictor_channels=32,
    )  # fmt: skip
    made = transformers.FastSpeech2ConformerModel(config).to(BF16)
    made.save_pretrained(folder)
    return type(made)


def save_translator(folder: Path) -> Any:
    """Save a model whose tables of positions are not, rounded twice, those of bfloat16; return its class."""
    torch.manual_seed(0)
    config = transformers.M2M100Config(
        vocab_size=90, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    made = transformers.M2M100Model(config).to(BF16)
    made.save_pretrained(folder)
    return type(made)


@pytest.mark.parametrize("after", [FP32, FP16], ids=str)
@pytest.mark.parametrize("saved", [save_speech, save_translator])
def test_tables_of_positions(saved: Callable[[Path], Any], after: torch.dtype, tmp_path: Path) -> None:
    """They are what a load in the new dtype makes, also of one 16-bit dtype after the other, and beside a dropout."""
    loaded = saved(tmp_path)
    model, fresh = (loaded.from_pretrained(tmp_path, dtype=dtype) for dtype in (BF16, after))
    recast(model, {BF16}, after)
    tables = {name: table for name, table in fresh.named_buffers() if name not in fresh.state_dict()}
    assert tables
    for name, table in tables.items():
        assert model.get_buffer(name).dtype == table.dtype
        assert torch.equal(model.get_buffer(name), table), name


def test_a_buffer_that_was_changed_since_is_cast(tmp_path: Path) -> None:
    """Whoever has set another scale keeps it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY["gemma2"].save(tmp_path / "model", BF16))
    scale = model.model.embed_tokens.embed_scale
    scale.mul_(2)
    kept, state = scale.clone(), torch.get_rng_state()
    recast(model, {BF16}, FP32)
    assert torch.equal(model.model.embed_tokens.embed_scale, kept.float())
    assert torch.equal(torch.get_rng_state(), state)
