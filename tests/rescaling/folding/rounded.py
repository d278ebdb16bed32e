"""Checkpoints that are rounded on loading, and step down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from safe_dtype import BFLOAT16, Dtype, SafeAutoModelForCausalLM
from safe_dtype.testing import fault

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
IDS = torch.arange(3, 9)[None]
DOWN = "model.layers.1.mlp.down_proj"


def step_down(model: Any, dtype: Dtype = BFLOAT16) -> None:
    """Have the device refuse a product in 16 bit."""
    with fault(model, DOWN, "cublas", dtype=dtype):
        model.generate(IDS, max_new_tokens=2)
    assert model.dtype == FP32


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the parameters, in float32."""
    return {name: one.detach().float().clone() for name, one in model.named_parameters()}


def load(folder: Path, dtype: torch.dtype = BF16) -> Any:
    """Load with us."""
    return SafeAutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def reference(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that plain transformers loads in float32."""
    return weights(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=FP32))
