"""A bound of hidden states from the weights alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from engineered import engineered, prompts

from safe_dtype.facts import Gauge
from safe_dtype.models.blocks import block_names
from safe_dtype.rescaling import gauges_for
from safe_dtype.rescaling.fitting.norm_bound import certified_bound


def residual_gauge(model: Any) -> Gauge:
    """Return the gauge of the hidden states."""
    return gauges_for(model).gauges[0]


def bound(family: str) -> float | None:
    """Return the certified bound of an engineered model."""
    model = engineered(family)
    return certified_bound(model, residual_gauge(model), prompts(family, count=1, tokens=8, seed=0)[0])


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_it_is_the_sum_of_what_norms_can_return(family: str) -> None:
    """Embedding and gains, channel by channel, as the formula of the architecture has it."""
    model = engineered(family)
    root = math.sqrt(model.config.hidden_size)
    expected = (model.model.embed_tokens.weight.abs() * model.model.embed_tokens.embed_scale).amax(0)
    for layer in model.model.layers:
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            expected = expected + (1 + norm.weight).abs() * root
    assert bound(family) == pytest.approx(expected.detach().max().item(), rel=1e-3)


def test_no_input_goes_beyond_it() -> None:
    """Hidden states of random tokens, and of blocks that are made as large as can be, stay below."""
    model = engineered("gemma3")
    limit = bound("gemma3")
    assert limit is not None
    seen: list[float] = []
    for name in block_names(model):
        model.get_submodule(name).register_forward_hook(lambda *given: seen.append(float(given[2].abs().max())))
    with torch.inference_mode():
        for batch in prompts("gemma3", count=8, tokens=32, seed=4):
            model(**batch)
        usual = max(seen)
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1e6)  # which a norm behind it forgets
        model(**prompts("gemma3", count=1, tokens=32, seed=4)[0])
    assert usual <= max(seen) <= limit
    assert limit < 4 * usual, "the bound is tight"


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_none_where_linear_layers_write(family: str) -> None:
    """Their outputs have no end that would be worth naming."""
    assert bound(family) is None
