"""Which files hold the weights: chosen as transformers chooses, and complete, or a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import TINY

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.errors import CheckpointNotFoundError, CorruptCheckpointError, MissingShardError
from safe_dtype.facts import FLOAT16, FLOAT32, Where


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    """Write a checkpoint of one safetensors file."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "20KB"}],
                         ids=str)  # fmt: skip
def test_shards_and_variants(options: dict[str, str], tmp_path: Path) -> None:
    """Shards and variants are found as transformers names them."""
    TINY["qwen3"].save(tmp_path, torch.float16, **options)
    facts = read_checkpoint(Where(tmp_path, variant=options.get("variant")))
    assert facts.parameters == TINY["qwen3"].make().num_parameters()
    assert len(facts.files) == len(list(tmp_path.glob("*.safetensors")))


def test_safetensors_come_first(tmp_path: Path) -> None:
    """Safetensors are taken before pickles, as transformers takes them, unless `use_safetensors=False`."""
    save(tmp_path, {"a": torch.zeros(9)}, {})
    torch.save({"a": torch.zeros(9).half()}, tmp_path / "pytorch_model.bin")
    assert read_checkpoint(tmp_path).saved == FLOAT32
    assert read_checkpoint(Where(tmp_path, use_safetensors=False)).saved == FLOAT16


def header_of(entries: dict[str, Any], payload: int) -> bytes:
    """Return a safetensors file with this header and `payload` bytes of tensors."""
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(payload)


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    """Return one tensor's entry of a header."""
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Return a checkpoint in several shards."""
    return TINY["qwen3"].save(tmp_path, torch.float16, max_shard_size="20KB")


def test_missing_shard(sharded: Path) -> None:
    """A shard that is not there is named, with how many there should be."""
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(MissingShardError, match=victim.name):
        read_checkpoint(sharded)


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        pytest.param("{", CorruptCheckpointError, "no index", id="no-json"),
        pytest.param("{}", CorruptCheckpointError, "no index", id="no-map"),
        pytest.param('{"weight_map": {}}', CorruptCheckpointError, "no tensors", id="empty"),
        pytest.param(
            '{"weight_map": {"a": "b.safetensors"}}', MissingShardError, "b.safetensors", id="files-not-there"
        ),
    ],
)
def test_bad_index(index: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    """An index that is none, or names files that are not there, is its own error."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(error, match=words):
        read_checkpoint(tmp_path)


def test_index_promises_too_much(sharded: Path) -> None:
    """A tensor that the index promises and no shard holds is named."""
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(CorruptCheckpointError, match=r"model\.ghost\.weight"):
        read_checkpoint(sharded)


def test_shard_outside_the_folder(sharded: Path) -> None:
    """An index cannot lead out of its folder."""
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["x"] = "../outside.safetensors"
    path.write_text(json.dumps(index))
    (sharded.parent / "outside.safetensors").write_bytes(header_of({"x": entry([4], 0, 16)}, 16))
    with pytest.raises(CorruptCheckpointError, match="outside"):
        read_checkpoint(sharded)


def test_no_weights(tmp_path: Path) -> None:
    """A folder without weights says which files were looked for."""
    with pytest.raises(CheckpointNotFoundError, match=r"model\.safetensors.*pytorch_model\.bin"):
        read_checkpoint(tmp_path)


def test_unknown_file(tmp_path: Path) -> None:
    """A file of another kind is refused by its ending."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointNotFoundError, match=r"\.safetensors"):
        read_checkpoint(tmp_path / "model.onnx")
