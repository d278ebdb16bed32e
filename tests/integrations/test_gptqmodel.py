"""Checkpoints in GPTQ's format, whose codes GPTQModel multiplies, on a CPU.

GPTQModel is no dependency of the tests: `nox -s "tool(gptqmodel)"`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from quantized_models import (
    DOWN,
    NORM,
    PROMPT,
    assert_as_plain,
    assert_names_the_fault,
    distance,
    load,
    marks_of,
    tiny_qwen3,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_dtype.errors import NoDtypeLeft
from safe_dtype.facts import BFLOAT16
from safe_dtype.testing import fault

pytestmark = marks_of("gptqmodel")
GROUP, BITS = 32, 4
ZERO = 8  # what 0 is as a code
SHIFTS = BITS * torch.arange(32 // BITS)


def _words(codes: Tensor) -> Tensor:
    """Return codes, eight of them behind each other in the last place, as one int32 each: the first one lowest."""
    words = (codes.long() << SHIFTS).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _coded(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return a weight as GPTQ's files have it, and the numbers that it stands for."""
    outputs, inputs = weight.shape
    groups = weight.float().view(outputs, inputs // GROUP, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) / (ZERO - 0.5)).half()
    codes = ((groups / scales.float()).round().clamp(-ZERO, ZERO - 1) + ZERO).view(outputs, inputs)
    packed = {
        "qweight": _words(codes.T.reshape(inputs // 8, 8, outputs).transpose(1, 2)),  # eight inputs of an output
        "qzeros": _words(torch.full((inputs // GROUP, outputs // 8, 8), ZERO - 1)),  # the format says one less
        "scales": scales[..., 0].T.contiguous(),
        "g_idx": (torch.arange(inputs) // GROUP).int(),
    }
    return packed, ((codes - ZERO).view_as(groups) * scales.float()).view(outputs, inputs).bfloat16()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model whose linear weights are in GPTQ's codes, and the same one of the numbers that these stand for."""
    folder = tiny_qwen3(tmp_path_factory.mktemp("gptq") / "model")
    dense = Path(shutil.copytree(folder, folder.parent / "dense"))
    weights, numbers = {}, {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        if key.endswith("proj.weight"):
            packed, numbers[key] = _coded(tensor)
            weights |= {f"{key.removesuffix('weight')}{name}": one for name, one in packed.items()}
        else:
            weights[key] = numbers[key] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(numbers, dense / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    quantization = {
        "quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": True,
        "checkpoint_format": "gptq",
    }  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quantization}))
    return folder, dense


def test_as_plain(folders: tuple[Path, Path]) -> None:
    """In every dtype it answers bit for bit as plain transformers."""
    assert_as_plain(folders[0], lambda: None, "gptq")


def test_the_numbers_of_its_codes(folders: tuple[Path, Path]) -> None:
    """What it answers is near to what the model of these numbers answers."""
    coded, dense = (load(folder, torch.bfloat16)(PROMPT).logits for folder in folders)
    assert distance(coded, dense) < 0.02


@pytest.mark.parametrize("kind", ["cublas", "nan"])
@pytest.mark.parametrize("module", [NORM, DOWN])
def test_its_kernels_fix_the_dtype(kind: str, module: str, folders: tuple[Path, Path]) -> None:
    """A fault in bfloat16 ends in an error that says why no other dtype is tried."""
    model = load(folders[0], torch.bfloat16)
    with fault(model, module, kind, dtype=BFLOAT16), pytest.raises(NoDtypeLeft, match="quantized with gptq"):
        model(PROMPT)


def test_a_fault_in_a_scale(folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NaN in a scale of the files is found, and the log names the module."""
    spoiled = Path(shutil.copytree(folders[0], tmp_path / "spoiled"))
    weights = load_file(spoiled / "model.safetensors")
    weights[f"{DOWN}.scales"].view(-1)[3] = torch.nan
    save_file(weights, spoiled / "model.safetensors", metadata={"format": "pt"})
    assert_names_the_fault(load(spoiled, torch.bfloat16), caplog)
