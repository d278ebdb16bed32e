"""What loading makes and nobody saves is made once more in another dtype."""

from __future__ import annotations

from pathlib import Path

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


def test_a_buffer_that_was_changed_since_is_cast(tmp_path: Path) -> None:
    """Whoever has set another scale keeps it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY["gemma2"].save(tmp_path / "model", BF16))
    scale = model.model.embed_tokens.embed_scale
    scale.mul_(2)
    kept, state = scale.clone(), torch.get_rng_state()
    recast(model, {BF16}, FP32)
    assert torch.equal(model.model.embed_tokens.embed_scale, kept.float())
    assert torch.equal(torch.get_rng_state(), state)
