"""Tiny configs keep what is no size, and tied weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as tf
from rescaling.real_configs import REAL
from torch import nn

from safe_dtype.rescaling.discovery.twin import MOST_PARAMETERS, Twin, make_twin

every_type = pytest.mark.parametrize("name", REAL)


@cache
def twin_of(name: str) -> Twin:
    """Make each twin once: nothing here changes them."""
    return make_twin(REAL[name].model_class, REAL[name].config())


@every_type
def test_is_small(name: str) -> None:
    """A twin has a hidden size of 32 to 64, a few layers and fewer parameters than allowed."""
    model = twin_of(name).model
    assert 32 <= model.config.get_text_config().hidden_size <= 64
    assert sum(one.numel() for one in model.parameters()) < MOST_PARAMETERS / 2
    assert all(len(one) <= 12 for one in model.modules() if isinstance(one, nn.ModuleList))


@every_type
def test_keeps_what_is_not_a_size(name: str) -> None:
    """Truth values, names and fractions of the real config, epsilons among them, are the twin's."""
    real = REAL[name].config()

    def said(config: Any) -> dict[str, Any]:
        return {
            key: value
            for key, value in vars(config).items()
            if isinstance(value, bool | str | float) and not key.startswith("_") and key != "use_cache"
        }

    tiny = vars(twin_of(name).model.config)
    assert {key: tiny[key] for key in said(real)} == said(real)


@every_type
def test_tied_stays_tied(name: str) -> None:
    """The head shares the embedding's weight exactly where it does in the real model."""
    real = REAL[name]
    with torch.device("meta"):
        whole = real.model_class(real.config())
    model = twin_of(name).model

    def tied(one: Any) -> bool:
        head = one.get_output_embeddings()
        return head is not None and head.weight is one.get_input_embeddings().weight

    assert tied(model) == tied(whole)


def test_takes_its_part_of_a_composite_config() -> None:
    """A text model is built from the part of a config that describes text, as the Auto classes do."""
    twin = make_twin(tf.Gemma3ForCausalLM, REAL["gemma3"].config())
    assert type(twin.model.config) is tf.Gemma3TextConfig


def test_quantized_checkpoints_have_plain_twins() -> None:
    """How a checkpoint's weights are stored does not matter to its twin."""
    config = REAL["deepseek_v3"].config()
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model = make_twin(tf.DeepseekV3ForCausalLM, config).model
    assert {one.dtype for one in model.parameters()} == {torch.float64}
