"""A rescale that plain transformers computes too: in the weights and the config, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engineered import engineered, prompts
from torch import Tensor

from safe_dtype.errors import RescaleError
from safe_dtype.facts import FLOAT16, Rescale
from safe_dtype.rescaling import gauges_for
from safe_dtype.rescaling.for_plain import fold_for_plain

BITS = 8  # takes a peak of 4.7e5 to 1.8e3


def logits(model: Any, family: str) -> Tensor:
    """Return what a model says of a prompt."""
    with torch.inference_mode():
        found: Tensor = model(**prompts(family, count=1, tokens=24, seed=3)[0]).logits.float()
    return found


def plainly(folder: Path, dtype: str | torch.dtype = "auto") -> Any:
    """Return what plain transformers loads."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_folded_is_exact(family: str, tmp_path: Path) -> None:
    """Saved folded and loaded by plain transformers, the logits are the same but for the rounding of sums.

    Qwen3 ties its head to the embedding, which moves, and has norms of queries and keys that share the eps.
    """
    model = engineered(family)
    before = logits(model, family)
    residual = next(one for one in gauges_for(model).gauges if one.name == "residual")
    folded = fold_for_plain(model, Rescale(((residual, BITS),)))
    model.save_pretrained(tmp_path)
    assert folded.config == {"rms_norm_eps": 1e-6 * 4.0**-BITS} or family == "phi3"
    assert folded.untied is (family == "qwen3")
    loaded = plainly(tmp_path, torch.float32)
    assert torch.allclose(logits(loaded, family), before, atol=2e-4)
    inside: list[Tensor] = []
    loaded.model.layers[-1].register_forward_hook(
        lambda _, __, returned: inside.append(returned[0] if isinstance(returned, tuple) else returned)
    )
    logits(loaded, family)
    assert inside[0].abs().max() < FLOAT16.largest / 8


def test_scaled_embedding(tmp_path: Path) -> None:
    """Where the embedding itself becomes smaller, what it is multiplied by does not have to."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.GemmaConfig(vocab_size=320, **sizes, num_key_value_heads=1, head_dim=16)
    model = transformers.GemmaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[50:60, 5] = 3e4
    before = logits(model, "llama")
    gauges = [one for one in gauges_for(model).gauges if one.name in ("residual", "embedding scale")]
    assert len(gauges) == 2
    fold_for_plain(model, Rescale(tuple((gauge, BITS) for gauge in gauges)))
    model.save_pretrained(tmp_path)
    assert torch.allclose(logits(plainly(tmp_path, torch.float32), "llama"), before, rtol=1e-4)


def test_embedding_that_would_lose_too_much() -> None:
    """What ours multiplies on the way, a checkpoint holds in its embedding: small rows would be lost there."""
    model = engineered("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2.0**-9)
    residual = next(one for one in gauges_for(model).gauges if one.name == "residual")
    with pytest.raises(RescaleError, match=r"embed_tokens\.weight would lose 0\.0\d+ of its size"):
        fold_for_plain(model, Rescale(((residual, BITS),)))


def test_needs_a_hook() -> None:
    """A rescale that multiplies what a module returns is in no checkpoint, and it is said which module that is."""
    model = engineered("gemma2")
    residual = next(one for one in gauges_for(model).gauges if one.name == "residual")
    with pytest.raises(RescaleError, match="layernorm would need a hook"):
        fold_for_plain(model, Rescale(((residual, BITS),)))


def test_not_in_the_config() -> None:
    """A number that modelling code computes, as the scaling of scores, comes from no key."""
    model = engineered("llama")
    scores = next(one for one in gauges_for(model).gauges if one.name.startswith("self_attn.q_proj"))
    with pytest.raises(RescaleError, match="scaling and 3 others come from no key of the config"):
        fold_for_plain(model, Rescale(((scores, 1),)))
