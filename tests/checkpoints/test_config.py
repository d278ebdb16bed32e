"""config.json as it stands, and what is said where it is broken or missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.errors import CorruptCheckpointError


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint of one safetensors file."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("text", ["{", '{"a":' * 100_000 + "1" + "}" * 100_000], ids=["cut", "deep"])
def test_bad_config(text: str, tmp_path: Path) -> None:
    """A config.json that is no JSON is named."""
    save(tmp_path, {"a": torch.zeros(9)})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CorruptCheckpointError, match=r"config\.json"):
        read_checkpoint(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    """Weights without a config are read, with a warning."""
    assert "no config.json" in read_checkpoint(save(tmp_path, {"a": torch.zeros(9)})).warnings[0]
