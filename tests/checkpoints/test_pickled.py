"""PyTorch's own files are read without running what they carry."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TINY

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.errors import CorruptCheckpointError, UnsafeCheckpointError
from safe_dtype.facts import FLOAT16


@pytest.mark.parametrize("sharded", [False, True])
def test_pickles(sharded: bool, tmp_path: Path) -> None:
    """PyTorch's own files are described without reading their tensors."""
    model = TINY["qwen3"].make().half()
    weights = model.state_dict()
    model.config.save_pretrained(tmp_path)
    if sharded:
        names = list(weights)
        parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for file, part in parts.items():
            torch.save({name: weights[name] for name in part}, tmp_path / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    facts = read_checkpoint(tmp_path)
    assert (facts.saved, facts.file_format) == (FLOAT16, "pytorch")
    assert len(facts.tensors) == len(weights)


class Bomb:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    "write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))], ids=["zip", "raw"]
)
def test_unsafe_pickle(write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    """A pickle that would run code is refused, and the code does not run."""
    marker = tmp_path / "ran"
    write({"a": Bomb(f"touch {marker}")}, tmp_path / "pytorch_model.bin")
    with pytest.raises((UnsafeCheckpointError, CorruptCheckpointError)) as caught:
        read_checkpoint(tmp_path)
    assert not marker.exists()
    assert write is not torch.save or isinstance(caught.value, UnsafeCheckpointError)


def test_broken_pickle(tmp_path: Path) -> None:
    """A truncated pickle is a corrupt file."""
    torch.save({"a": torch.zeros(999)}, tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptCheckpointError, match=r"pytorch_model\.bin"):
        read_checkpoint(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Return a checkpoint in several shards."""
    return TINY["qwen3"].save(tmp_path, torch.float16, max_shard_size="20KB")
