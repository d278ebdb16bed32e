"""A single module that goes to float32 on an accelerator: where it lies, beside all others that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator.rehearsal import Rehearsal
from guarding.generators import DOWN, ONE_ROW, generator

from safe_dtype import SafeAutoModelForCausalLM, report
from safe_dtype.testing import fault

PARTS = ("embed_tokens", "rotary_emb", "norm")
TWO = {
    "lm_head": 0,
    "model.layers.0": 0,
    **{f"model.{part}": 0 for part in PARTS},
    "model.layers.1": 1,
    "model.layers.2": 1,
}


@pytest.mark.parametrize(("device_map", "index"), [({"": 0}, 0), (TWO, 1)], ids=["one-device", "two-devices"])
def test_island(rehearsal: Rehearsal, tmp_path: Path, device_map: Any, index: int) -> None:
    """The step goes on as on the CPU, token for token."""
    generator("qwen3", torch.bfloat16).save_pretrained(tmp_path)
    answers = []
    for place in ("cpu", device_map):
        model = SafeAutoModelForCausalLM.from_pretrained(
            tmp_path, dtype="bfloat16", policy="islands", device_map=place
        )
        inputs = {name: tensor.to(model.device) for name, tensor in ONE_ROW.items()}
        with fault(model, DOWN, "cublas", call=2):
            answers.append(model.generate(**inputs, max_new_tokens=6, do_sample=False).cpu())
        assert (model.dtype, report(model).islands) == (torch.bfloat16, (DOWN,))
        weight = model.get_parameter(f"{DOWN}.weight")
        assert weight.dtype == torch.float32
    assert weight.device == rehearsal.device(index)
    assert torch.equal(*answers)
