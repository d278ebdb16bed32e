"""A float32 checkpoint of numbers that were cast up is known as such from samples of its matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.facts import BFLOAT16, FLOAT16, Dtype

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def narrower(folder: Path, *weights: Tensor, files: int = 1) -> Dtype | None:
    """Return what is found of a checkpoint with these weights, spread over so many files."""
    for number in range(files):
        name = f"model-{number}.safetensors" if files > 1 else "model.safetensors"
        save_file(
            {f"layers.{place}.weight": one for place, one in enumerate(weights) if place % files == number},
            folder / name,
        )
    if files > 1:
        places = ", ".join(
            f'"layers.{place}.weight": "model-{place % files}.safetensors"' for place in range(len(weights))
        )
        (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{places}}}}}')
    return read_checkpoint(folder).narrower


@pytest.fixture
def cast_up() -> dict[torch.dtype, Tensor]:
    """Matrices in float32 of numbers of each dtype."""
    torch.manual_seed(0)
    weight = torch.randn(512, 512) * 0.02
    return {dtype: weight.to(dtype).float() for dtype in (BF16, FP16, FP32)}


@pytest.mark.parametrize(
    ("dtypes", "found"),
    [
        ((BF16, BF16), BFLOAT16),
        ((FP16, FP16), FLOAT16),
        ((FP32, FP32), None),
        ((BF16, FP32), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("files", [1, 2])
def test_found(
    dtypes: tuple[torch.dtype, ...],
    found: Dtype | None,
    files: int,
    cast_up: dict[torch.dtype, Tensor],
    tmp_path: Path,
) -> None:
    """A format is found where it has the numbers of all matrices, in whatever file they lie."""
    assert narrower(tmp_path, *(cast_up[dtype].clone() for dtype in dtypes), files=files) == found


def test_what_is_not_looked_at(cast_up: dict[torch.dtype, Tensor], tmp_path: Path) -> None:
    """Norms and small matrices, which stay as they are, decide nothing."""
    assert narrower(tmp_path, cast_up[BF16], torch.randn(512), torch.randn(64, 64)) == BFLOAT16


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(512, 512), torch.ones(512, 512, dtype=BF16), torch.ones(64, 64)],
    ids=["zeros", "saved-in-16-bit", "small"],
)
def test_nobody_knows(weight: Tensor, tmp_path: Path) -> None:
    """Zeros are numbers of every format, and of what is small or saved in 16 bit there is nothing to gain."""
    assert narrower(tmp_path, weight) is None


def test_one_file(cast_up: dict[torch.dtype, Tensor], tmp_path: Path) -> None:
    """A single file is looked at as a folder is."""
    assert narrower(tmp_path, cast_up[BF16]) == BFLOAT16
    assert read_checkpoint(tmp_path / "model.safetensors").narrower == BFLOAT16
