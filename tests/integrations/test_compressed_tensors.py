"""Checkpoints that come in compressed-tensors' formats: INT4 as Kimi-K2-Thinking is, and float8, on a CPU.

compressed-tensors is no dependency of the tests: `nox -s "tool(compressed_tensors)"`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from published_models import LATENT
from quantized_models import (
    DOWN,
    NORM,
    PROMPT,
    assert_as_plain,
    assert_names_the_fault,
    assert_steps_down,
    distance,
    load,
    marks_of,
    tiny_qwen3,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_dtype import SafeAutoModelForCausalLM, plan_of

pytestmark = marks_of("compressed_tensors")
GROUP = 32
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True, "dynamic": False}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
ACTIVATIONS = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}


def _int4(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Return a weight as eight codes in each int32, the first one lowest, with a scale for each group of a row."""
    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // GROUP, GROUP)
    scales = (groups.abs().amax(-1) / 7.5).bfloat16()
    codes = (groups / scales.float()[..., None]).round().clamp(-8, 7).long().view(rows, columns // 8, 8) + 8
    words = (codes << (4 * torch.arange(8))).sum(-1)
    packed = torch.where(words >= 2**31, words - 2**32, words).int()
    return {f"{name}_packed": packed, f"{name}_scale": scales, f"{name}_shape": torch.tensor([rows, columns])}


def _unpacked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the numbers that the codes of `_int4` stand for, and all else as it is."""
    dense = {name: one for name, one in weights.items() if not name.endswith(("_packed", "_scale", "_shape"))}
    for name, words in weights.items():
        if name.endswith("_packed"):
            key = name.removesuffix("_packed")
            codes = ((words.long()[..., None] >> (4 * torch.arange(8))) & 15).flatten(1) - 8
            scales = weights[f"{key}_scale"].float().repeat_interleave(GROUP, 1)
            dense[key] = (codes * scales).bfloat16()
    return dense


def _float8(name: str, weight: Tensor) -> dict[str, Tensor]:
    scales = (weight.float().abs().amax(1, keepdim=True) / 448).bfloat16()
    return {name: (weight.float() / scales.float()).to(torch.float8_e4m3fn), f"{name}_scale": scales}


FORMATS: dict[str, tuple[Callable[[str, Tensor], dict[str, Tensor]], str, dict[str, Any]]] = {
    "int4": (_int4, "pack-quantized", {"weights": INT4}),
    "float8": (_float8, "float-quantized", {"weights": FLOAT8, "input_activations": ACTIVATIONS}),
}


@pytest.fixture(scope="module", params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose linear weights are in one of the formats."""
    pack, name, scheme = FORMATS[request.param]
    folder = tiny_qwen3(tmp_path_factory.mktemp(request.param) / "model")
    weights: dict[str, Tensor] = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        weights |= pack(key, tensor) if key.endswith("proj.weight") else {key: tensor}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": name, "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], **scheme}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_as_plain(folder: Path) -> None:
    """In every dtype it answers bit for bit as plain transformers."""
    assert_as_plain(folder, lambda: None, "compressed-tensors")


@pytest.mark.parametrize("fault", ["cublas", "nan"])
@pytest.mark.parametrize("module", [NORM, DOWN])
def test_steps_down(fault: str, module: str, folder: Path) -> None:
    """A fault in the very first step leads to float32, with the weights that were unpacked before it."""
    # Activations are rounded to float8 as well, to 4 bits, of other numbers in bfloat16 than in float32.
    tolerance = 0.02 if folder.parent.name.startswith("int4") else 2**-4
    assert_steps_down(folder, lambda: None, module, fault, tolerance=tolerance)


def test_a_fault_in_a_scale(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NaN in a scale of the files is found, and the log names the module."""
    spoiled = Path(shutil.copytree(folder, tmp_path / "spoiled"))
    weights = load_file(spoiled / "model.safetensors")
    weights[f"{DOWN}.weight_scale"].view(-1)[3] = torch.nan
    save_file(weights, spoiled / "model.safetensors", metadata={"format": "pt"})
    assert_names_the_fault(load(spoiled, torch.bfloat16), caplog)


def test_bytes(folder: Path) -> None:
    """It is planned with the bytes of what is unpacked."""
    model = SafeAutoModelForCausalLM.from_pretrained(folder)
    model(PROMPT)
    assert plan_of(model).cost.weight_bytes == pytest.approx(sum(one.nbytes for one in model.parameters()), rel=0.01)


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kimi-K2-Thinking, tiny: of a type that transformers does not know, its routed experts one by one in INT4."""
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(**LATENT | {"moe_intermediate_size": GROUP})
    folder = tmp_path_factory.mktemp("kimi") / "model"
    transformers.DeepseekV3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    weights: dict[str, Tensor] = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        weights |= _int4(key, tensor) if re.search(r"experts\.\d+\.\w+_proj\.weight$", key) else {key: tensor}
    assert sum(key.endswith("_packed") for key in weights) == 3 * 4 * 2  # products, experts, layers
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4}},
    }  # fmt: skip
    file = folder / "config.json"
    changes = {"model_type": "kimi_k2", "quantization_config": quantization}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_experts_of_an_unknown_type(kimi: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """The codes of the experts of Kimi-K2-Thinking are all found: it answers as the model of the numbers that they stand for."""
    dense = Path(shutil.copytree(kimi, tmp_path / "dense"))
    weights = _unpacked(load_file(kimi / "model.safetensors"))
    save_file(weights, dense / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((dense / "config.json").read_text()) | {"model_type": "deepseek_v3"}
    del config["quantization_config"]
    (dense / "config.json").write_text(json.dumps(config))
    plain = transformers.DeepseekV3ForCausalLM.from_pretrained(dense, dtype=torch.bfloat16).eval()
    model = load(kimi, torch.bfloat16)
    assert plan_of(model).quantization == "compressed-tensors"
    assert distance(model(PROMPT).logits, plain(PROMPT).logits) < 0.01
    assert not [one for one in recwarn if "random" in str(one.message)]
