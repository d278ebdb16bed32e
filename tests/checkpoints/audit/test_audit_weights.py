"""The audit counts exactly what torch's own conversion to float16 does to the weights."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from checkpoints.audit.spreads import SPREADS, audited, by_name, counted, fates
from tiny_models import TINY

from safe_dtype.checkpoints import audit
from safe_dtype.facts import Where


def test_odd_shapes(tmp_path: Path) -> None:
    """Tensors without elements, or without dimensions, are audited as well."""
    odd = {"empty": torch.zeros(0, 7), "scalar": torch.tensor(1e6), "three": torch.ones(3, dtype=torch.bfloat16)}
    found = audited(tmp_path, odd)
    assert {name: counted(census) for name, census in found.items()} == {name: fates(one) for name, one in odd.items()}
    assert found["empty"].bits_up is None
    assert found["empty"].bits_down(0.001) is None
    assert found["empty"].quantile(0.5) is None


def test_not_a_float(tmp_path: Path) -> None:
    """Integers and float8 are named, and left alone."""
    tensors = {
        "ids": torch.arange(5), "mask": torch.ones(3, dtype=torch.bool),
        "packed": torch.ones(4).to(torch.float8_e4m3fn), "w": torch.ones(2),
    }  # fmt: skip
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    found = audit(tmp_path)
    assert [one.tensor.name for one in found.tensors] == ["w"]
    assert {one.name: one.dtype for one in found.left_alone} == {
        "ids": "int64", "mask": "bool", "packed": "float8_e4m3fn",
    }  # fmt: skip


def test_shards_and_threads(tmp_path: Path) -> None:
    """All shards are read; how many threads read them makes no difference; progress ends at the end."""
    model = TINY["qwen3"].make().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    told: list[tuple[int, int]] = []
    one = audit(Where(tmp_path), threads=1, progress=lambda done, total: told.append((done, total)))
    assert audit(tmp_path, threads=3) == one
    assert by_name(one).keys() == safetensors_names(tmp_path)
    assert one.total.elements == sum(p.numel() for p in model.parameters())
    assert told == sorted(told)
    assert told[-1] == (2 * one.total.elements, 2 * one.total.elements)


def safetensors_names(folder: Path) -> set[str]:
    """Return the names of all tensors, by safetensors itself."""
    return {name for file in folder.glob("*.safetensors") for name in safetensors.torch.load_file(file)}


def test_pieces(tmp_path: Path) -> None:
    """A tensor that several threads read in pieces gets one census, as if read in one go."""
    before = audited(tmp_path, {"w": SPREADS["usual"], "v": SPREADS["one-spike"]})
    after = by_name(audit(tmp_path, threads=2, piece_bytes=300_000))
    assert {name: counted(one) for name, one in after.items()} == {name: counted(one) for name, one in before.items()}
    assert after["w"].bits_down(0.001) == before["w"].bits_down(0.001)
