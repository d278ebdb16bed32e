"""Weights that transformers keeps in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import TINY
from transformers import PreTrainedConfig

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.checkpoints.keep_in_fp32 import kept_in_float32

_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 64}


def test_kept_in_float32(tmp_path: Path) -> None:
    """The class's own list of modules kept in float32 is read."""
    assert read_checkpoint(TINY["t5"].save(tmp_path, torch.float16)).keep_in_fp32 == ("wo",)


def composite() -> PreTrainedConfig:
    """Return the config of a BLIP-2 with a T5 inside."""
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Blip2Config(
        vision_config={**small, "image_size": 28, "patch_size": 14},
        qformer_config={**small, "encoder_hidden_size": 32},
        text_config={"model_type": "t5", **_SIZES},
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_lists_of_models_inside(dtype: torch.dtype) -> None:
    """Those of the models inside count as well: all that transformers gathers when it builds the model."""
    config = composite()
    with torch.device("meta"):
        model = transformers.Blip2ForConditionalGeneration(config)
    sometimes, always = kept_in_float32("Blip2ForConditionalGeneration", config.to_dict())
    assert {*always, *(sometimes if dtype == torch.float16 else ())} == set(model._get_dtype_plan(dtype))
    assert {"wo", "qformer", "query_tokens"} <= set(sometimes)


def test_unknown_classes() -> None:
    """What nobody knows has no lists, and is no fault."""
    config = {"model_type": "nobody_knows", "text_config": {"model_type": 7}, "parts": [1]}
    assert kept_in_float32("NobodyForCausalLM", config) == kept_in_float32(None, {}) == ((), ())
