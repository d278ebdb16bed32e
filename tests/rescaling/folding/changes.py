"""Rescued models that tests change, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engineered import engineered, prompts
from torch import Tensor, nn

from safe_dtype.facts import Rescale
from safe_dtype.models.recast import recast
from safe_dtype.rescaling import gauges_for
from safe_dtype.rescaling.to_float16 import halve

FAMILIES = ("llama", "qwen3", pytest.param("gemma2", marks=pytest.mark.slow), "t5")


def rescued(family: str) -> Any:
    """Return the engineered model of a family in float16, exactly rescaled."""
    model = engineered(family)
    recast(model, {torch.float32}, torch.bfloat16)
    gauges = [gauge for gauge in gauges_for(model).gauges if gauge.name.endswith("residual")]
    assert halve(model, Rescale(tuple((gauge, 6) for gauge in gauges))) is not None
    return model


def results(model: Any, family: str) -> Tensor:
    """Return the log-probabilities of a prompt that float16 alone cannot compute."""
    with torch.inference_mode():
        returned = model(**prompts(family, count=1, tokens=24, seed=3)[0], use_cache=False)
    log_probabilities: Tensor = returned.logits.float().log_softmax(-1)
    return log_probabilities


def is_near(found: Tensor, expected: Tensor) -> bool:
    """Whether two distributions are as near as float16 and float32 are: wrong sizes give more than 0.1."""
    divergence = (expected.exp() * (expected - found)).sum(-1)
    return bool(divergence.mean() < 2e-3)


def blocks(model: Any) -> Any:
    """Return the stack of blocks (of a T5, its encoder's)."""
    return model.encoder.block if hasattr(model, "encoder") else model.model.layers


def body(model: Any) -> Any:
    """Return the model inside that holds the stack."""
    return model.encoder if hasattr(model, "encoder") else model.model


def writers(model: Any) -> list[nn.Linear]:
    """Return the last linear module of each block, which writes into the residual stream."""
    return [[one for one in block.modules() if type(one) is nn.Linear][-1] for block in blocks(model)]
