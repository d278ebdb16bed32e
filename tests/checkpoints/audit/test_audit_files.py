"""What the audit reads: shards, adapters, other formats, the Hub; and what it says of files that are broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from mini_hub import MiniHub
from tiny_models import TINY, tiny_gguf

from safe_dtype.checkpoints import audit
from safe_dtype.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, MissingShardError


def test_groups(tmp_path: Path) -> None:
    """Tensors whose names differ only in the numbers of their layers are one group."""
    names = ("model.layers.0.mlp.w1.weight", "model.layers.11.mlp.w1.weight", "model.layers.0.mlp.w2.weight", "0.bias")
    safetensors.torch.save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    groups = {one.pattern: len(one.tensors) for one in audit(tmp_path).groups}
    assert groups == {"model.layers.*.mlp.w1.weight": 2, "model.layers.*.mlp.w2.weight": 1, "*.bias": 1}


def test_adapter(tmp_path: Path) -> None:
    """Of an adapter its own weights are audited."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')
    safetensors.torch.save_file({"lora_A": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    assert audit(tmp_path).total.elements == 6


def test_truncated(tmp_path: Path) -> None:
    """A file that ends early is refused before anything is read."""
    safetensors.torch.save_file({"w": torch.ones(1000)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CorruptCheckpointError, match="truncated"):
        audit(tmp_path)


def test_pickled(tmp_path: Path) -> None:
    """A pickled checkpoint is refused with the next step."""
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no safetensors file.*save_pretrained"):
        audit(tmp_path)


def test_gguf(tmp_path: Path) -> None:
    """So is a GGUF file."""
    with pytest.raises(CheckpointError, match=r"no safetensors file.*save_pretrained"):
        audit(tiny_gguf(tmp_path / "model.gguf"))


def test_nothing_there(tmp_path: Path) -> None:
    """A folder without weights, and no folder, are told apart from one with weights."""
    with pytest.raises(CheckpointNotFoundError, match="no weights"):
        audit(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        audit(tmp_path / "nowhere")


def test_missing_shard(tmp_path: Path) -> None:
    """Shards that the index names and nobody has are named."""
    TINY["qwen3"].make().save_pretrained(tmp_path, max_shard_size=50_000)
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(MissingShardError, match="00002"):
        audit(tmp_path)


_OF_A_REPOSITORY = """
from safe_dtype.checkpoints import audit
print(*audit("org/model").total.exponents)
"""


def test_repository(tmp_path: Path) -> None:
    """The shards of a repository on the Hub come into the cache, and are audited there."""
    folder = TINY["qwen3"].save(tmp_path / "model", torch.bfloat16, max_shard_size="30KB")
    hub = MiniHub({"org/model": folder})
    with hub.running():
        env = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", _OF_A_REPOSITORY]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == " ".join(map(str, audit(folder).total.exponents))
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == len(list(folder.glob("*.safetensors"))) > 1


_PEAK = """
import re, sys
from pathlib import Path
from safe_dtype.checkpoints import audit
found = audit(sys.argv[1], threads=1)
assert "torch" not in sys.modules
# Not ru_maxrss: a process inherits that of the one that started it.
print(found.total.elements, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_flat_memory(tmp_path: Path) -> None:
    """A file of 256 MB takes no more memory than one of 32 MB; torch is not even imported."""
    peaks = []
    for megabytes in (32, 256):
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file({"w": (torch.randn(1 << 20) * 0.02).bfloat16().repeat(megabytes // 2)}, path)
        done = subprocess.run([sys.executable, "-c", _PEAK, path], check=True, capture_output=True, text=True)
        elements, kilobytes = map(int, done.stdout.split())
        assert elements == megabytes << 19
        peaks.append(kilobytes)
    assert peaks[0] < 120_000
    assert peaks[1] - peaks[0] < 8_000
