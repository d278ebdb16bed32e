"""Weights that accelerate keeps elsewhere are recast where they lie."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import TINY

from safe_dtype import guard
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def tiny(name: str = "qwen3", dtype: torch.dtype = BF16) -> Any:
    """Return a seeded tiny model as `from_pretrained` would leave it: some buffers and parameters stay float32."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    recast(model, {FP32}, dtype)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save tiny models."""
    return lambda name, dtype, **options: TINY[name].save(tmp_path / name, dtype, **options)


def offloaded(folder: Path, tmp_path: Path, where: str) -> Any:
    """Load tiny-qwen3-like weights with one layer in the given place."""
    device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
                  "model.layers.0": "cpu", "model.layers.1": where}  # fmt: skip
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=BF16, device_map=device_map, offload_folder=str(tmp_path / "offload")
    )


def test_offloaded_to_disk(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """A model with a layer on disk goes on in float32, still offloaded, and equals one loaded in float32."""
    folder = saved("qwen3", BF16)
    model = guard(offloaded(folder, tmp_path, "disk"))
    with fault(model, "model.layers.1.mlp.down_proj", "cublas") as put:
        found = model.generate(IDS, max_new_tokens=6, do_sample=False)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=FP32)
    assert put.fired
    assert torch.equal(found, wanted.generate(IDS, max_new_tokens=6, do_sample=False))
    assert model.model.layers[1].mlp.down_proj.weight.is_meta
    assert torch.equal(model(input_ids=IDS).logits, wanted(input_ids=IDS).logits)


@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on:UserWarning")  # 5.16
def test_offloaded_to_main_memory(tmp_path: Path) -> None:
    """Weights that hooks keep in main memory, tied ones too, are cast there once."""
    from accelerate import cpu_offload

    model = tiny()
    wanted = copy.deepcopy(model)
    recast(wanted, {BF16}, FP32)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.lm_head.weight.is_meta
    guard(model)
    with fault(model, "model.layers.1.mlp.down_proj", "cublas") as put:
        found = model.generate(IDS, max_new_tokens=6, do_sample=False)
    assert put.fired
    assert torch.equal(found, wanted.generate(IDS, max_new_tokens=6, do_sample=False))
    held = model.lm_head._hf_hook.weights_map.dataset
    assert {held[name].dtype for name in held} == {FP32}
