"""Of files that are mostly float16 the largest numbers of the other tensors are read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY

from safe_dtype.checkpoints import read_checkpoint


def largest(folder: Path) -> dict[str, float | None]:
    """Return what is known of each tensor."""
    return {one.name: one.largest for one in read_checkpoint(folder).tensors if one.largest is not None}


def test_norms_in_float32(tmp_path: Path) -> None:
    """The largest |number| of a float32 tensor in a float16 file is known; of all others nobody asks."""
    folder = TINY["qwen3"].save(tmp_path, torch.float16)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert largest(folder) == {}
    tensors["model.norm.weight"] = torch.tensor([-1e5, *[1.0] * 31])
    tensors["model.layers.0.input_layernorm.weight"] = torch.full((32,), 2.0, dtype=torch.bfloat16)
    save_file(tensors, file, metadata={"format": "pt"})
    assert largest(folder) == {"model.norm.weight": 1e5, "model.layers.0.input_layernorm.weight": 2.0}


def test_bfloat16_files(tmp_path: Path) -> None:
    """Where most is bfloat16, float32 numbers are in its range: nothing is read."""
    folder = TINY["qwen3"].save(tmp_path, torch.bfloat16)
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"model.norm.weight": torch.ones(32)}, file, metadata={"format": "pt"})
    assert largest(folder) == {}
