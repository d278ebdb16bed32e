"""The files that weights were loaded from: found as transformers finds them, and marked as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from publishing.loopback import LoopbackHub
from tiny_models import TINY

from safe_dtype.checkpoints.stored_tensors import StoredTensors
from safe_dtype.checkpoints.weight_files import mark_weight_files
from safe_dtype.errors import CheckpointError
from safe_dtype.facts import Where


def test_a_folder(saved: Callable[..., Path]) -> None:
    """A file is marked by its absolute path and what changes with its content; its tensors are known."""
    files = mark_weight_files(Where(saved()))
    (mark,) = files.marks
    assert mark.path == saved().resolve() / "model.safetensors"
    assert mark.is_of(mark.path.stat())
    assert not mark.is_of((saved() / "config.json").stat())
    assert "model.norm.weight" in {tensor.name for tensor in files.tensors}
    assert not files.problem


def test_the_cache_of_the_hub(hub: LoopbackHub) -> None:
    """Of a repository it is the blobs in the cache; what was never downloaded is a problem, and nothing is asked."""
    from huggingface_hub import snapshot_download

    assert mark_weight_files(Where("org/model")).problem
    folder = Path(snapshot_download("org/model"))
    (mark,) = mark_weight_files(Where("org/model", revision=folder.name)).marks
    assert mark.path == (folder / "model.safetensors").resolve()
    assert mark.path.parent.name == "blobs"


def test_an_adapter(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """The weights of an adapter are those of its base."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(saved())}))
    (mark,) = mark_weight_files(Where(tmp_path)).marks
    assert mark.path.parent == saved().resolve()


@pytest.mark.parametrize("name", ["nothing/here/at/all", "model.gguf"])
def test_problems(name: str, tmp_path: Path) -> None:
    """Where tensors cannot be read one by one the problem is told, and opening raises it."""
    files = mark_weight_files(Where(tmp_path / name))
    assert files.problem
    with pytest.raises(CheckpointError, match=r"whole|no such"):
        StoredTensors(files)


def test_two_files_of_one_tensor_each(tmp_path: Path) -> None:
    """Every tensor is read as it was saved, and by no other name."""
    folder = TINY["qwen3"].save(tmp_path, torch.bfloat16, max_shard_size="12KB")
    torch.manual_seed(0)
    wanted = TINY["qwen3"].make().bfloat16().state_dict()
    stored = StoredTensors(mark_weight_files(Where(folder)))
    for name, tensor in stored.tensors.items():
        assert torch.equal(stored.read(name), wanted[name])
        assert tensor.shape == wanted[name].shape
    with pytest.raises(KeyError):
        stored.read("lm_head.weight")  # tied: the embedding's
    stored.close()
