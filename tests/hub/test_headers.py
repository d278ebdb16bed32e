"""Headers of safetensors files that contradict themselves, or their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TINY

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.errors import CorruptCheckpointError


def header_of(entries: dict[str, Any], payload: int) -> bytes:
    """Return a safetensors file with this header and `payload` bytes of tensors."""
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(payload)


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    """Return one tensor's entry of a header."""
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "no whole header", id="empty"),
        pytest.param((10**9).to_bytes(8, "little") + b"{}", "no whole header", id="header-longer-than-the-file"),
        pytest.param((2**60).to_bytes(8, "little") + b"{}", "no whole header", id="header-of-an-exabyte"),
        pytest.param((9).to_bytes(8, "little") + b"{nonsense", "no JSON", id="no-json"),
        pytest.param(
            (200_000).to_bytes(8, "little") + b"[" * 100_000 + b"]" * 100_000, "nested too deep", id="nested-deep"
        ),
        pytest.param((2).to_bytes(8, "little") + b"[]", "no table", id="no-table"),
        pytest.param(header_of({"a": entry([4], 0, 16)}, 8), "truncated", id="truncated"),
        pytest.param(header_of({"a": entry([4], 0, 16)}, 99), "longer than it says", id="trailing-bytes"),
        pytest.param(header_of({"a": entry([5], 0, 16)}, 16), "16 bytes instead of 20", id="shape-and-bytes"),
        pytest.param(header_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12), "begin at byte 4", id="overlap"),
        pytest.param(header_of({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, 24), "begin at byte 16", id="gap"),
        pytest.param(header_of({"a": entry([4], 0, 16, "F31")}, 16), "F31", id="unknown-format"),
        pytest.param(header_of({"a": {"shape": [4]}}, 16), "no tensor's", id="no-tensor"),
    ],
)
def test_corrupt_headers(content: bytes, words: str, tmp_path: Path) -> None:
    """Every way in which a header can contradict itself or its file is named."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=words) as caught:
        read_checkpoint(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    assert "download" in str(caught.value)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Return a checkpoint in several shards."""
    return TINY["qwen3"].save(tmp_path, torch.float16, max_shard_size="20KB")


def test_truncated_shard(sharded: Path) -> None:
    """A shard that is cut off is named, with both sizes."""
    victim = sorted(sharded.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(CorruptCheckpointError, match=rf"{victim.name}: is truncated"):
        read_checkpoint(sharded)
