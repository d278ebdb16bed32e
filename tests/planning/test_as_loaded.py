"""float8 checkpoints: what is planned is what transformers makes of them, in one dtype, with the bytes of that."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories as f
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import float8, mxfp4

import safe_dtype
from safe_dtype import Policy, SafeAutoModel, SafeAutoModelForCausalLM, SafeDtypeWarning, plan_of
from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.commands.rescue import rescue
from safe_dtype.commands.verify import Question, verify
from safe_dtype.devices import prior_facts
from safe_dtype.facts import BFLOAT16, DeviceFacts
from safe_dtype.planning import make_plan
from safe_dtype.planning.as_loaded import as_loaded
from safe_dtype.testing import fault

Saved = Callable[..., Path]


@pytest.fixture
def packed(saved: Saved, tmp_path: Path) -> Path:
    """A tiny Qwen3 in float8."""
    return float8(Path(shutil.copytree(saved("qwen3"), tmp_path / "packed")))


@pytest.fixture
def trained(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """The bundled model in float8, with its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    model.save_pretrained(tmp_path / "trained")
    transformers.AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(tmp_path / "trained")
    return float8(tmp_path / "trained")


def quiet(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call without a word: that it is dequantized is tested once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        return load(*arguments, **options)


def bytes_of(model: torch.nn.Module) -> int:
    """Return the bytes of the weights."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


@pytest.mark.parametrize("options", [{}, {"policy": "prefer=memory"}, {"policy": "strict"}, {"dtype": "float32"},
                                     {"dtype": "float16"}, {"dtype": "bfloat16"}], ids=str)  # fmt: skip
def test_one_dtype(options: dict[str, Any], packed: Path) -> None:
    """Whatever is asked for, the model is in one dtype, that of its plan, takes its bytes, and runs."""
    model = quiet(SafeAutoModelForCausalLM.from_pretrained, packed, **options)
    plan = plan_of(model)
    assert {str(one.dtype) for one in model.parameters()} == {f"torch.{plan.storage}"}
    assert plan.cost is not None
    assert (plan.cost.weight_bytes, plan.saved, plan.quantization) == (bytes_of(model), BFLOAT16, None)
    assert str(model.config.dtype) == f"torch.{plan.storage}"
    assert model(torch.arange(3, 20)[None]).logits.isfinite().all()


def test_the_same_values(packed: Path) -> None:
    """The weights are those that transformers dequantizes to that dtype."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32).state_dict()
    ours = quiet(SafeAutoModelForCausalLM.from_pretrained, packed, dtype="float32").state_dict()
    assert {one.dtype for one in plain.values()} == {torch.float32, torch.bfloat16}  # its first product fails
    assert all(torch.equal(ours[name], plain[name].float()) for name in plain)


def test_norms_in_float32(packed: Path) -> None:
    """What stands beside the float8 weights in float32 does not make it a model of two dtypes."""
    weights = load_file(packed / "model.safetensors")
    weights = {name: one.float() if name.endswith("norm.weight") else one for name, one in weights.items()}
    save_file(weights, packed / "model.safetensors", metadata={"format": "pt"})
    model = quiet(SafeAutoModelForCausalLM.from_pretrained, packed, policy="prefer=memory")
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert model(torch.arange(3, 20)[None]).logits.isfinite().all()


def test_said(packed: Path) -> None:
    """That the weights grow is said, with both sizes."""
    with pytest.warns(SafeDtypeWarning, match=r"float8.*: loading dequantizes it, to .* in 16 bit instead of"):
        SafeAutoModel.from_pretrained(packed)


def test_patched(packed: Path, tmp_path: Path) -> None:
    """In a patched program as well; the model is saved in what was dequantized."""
    with safe_dtype.patched():
        model = quiet(transformers.AutoModelForCausalLM.from_pretrained, packed)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "dense")
    assert {one.dtype for one in load_file(tmp_path / "dense" / "model.safetensors").values()} == {torch.bfloat16}
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-2)


def test_guard_steps_down(packed: Path) -> None:
    """A failing step goes on in float32, as in any model of bfloat16."""
    model = quiet(SafeAutoModelForCausalLM.from_pretrained, packed, policy="prefer=memory")
    assert model.dtype == torch.bfloat16
    ids = torch.arange(3, 20)[None]
    with fault(model, "model.layers.0.mlp", "nan"):
        logits = quiet(model, ids).logits
    assert logits.isfinite().all()
    assert safe_dtype.report(model).events


@pytest.mark.slow
def test_rescue_and_verify(trained: Path) -> None:
    """float16 is offered, and what it takes is measured on what is loaded."""
    found = quiet(rescue, str(trained), device="cpu", revision=None, text=None, max_drift=0.02)
    assert (found.beyond, found.saved) == (None, BFLOAT16)
    for dtype in ("float16", "bfloat16", None):
        question = Question(str(trained), dtype, "float32", "cpu", None, None, 128, 0.02)
        assert quiet(verify, question).beyond is None


@pytest.mark.parametrize(
    ("vendor", "capability", "is_dense"),
    [
        ("cpu", "", True), ("nvidia", "7.5", True), ("nvidia", "8.6", True), ("nvidia", "8.9", False),
        ("nvidia", "9.0", False), ("nvidia", "12.0", False), ("amd", "gfx942", False), ("apple", "M3", True),
    ],
)  # fmt: skip
def test_devices(vendor: str, capability: str, is_dense: bool, packed: Path) -> None:
    """It is dequantized where transformers dequantizes it: on CPUs, and on GPUs below compute capability 8.9."""
    device: DeviceFacts = replace(f.TURING, vendor=vendor, capability=capability)
    plan = make_plan(device, as_loaded(read_checkpoint(packed), device), Policy(prefer="memory"))
    assert (plan.quantization is None, plan.dequantized) == (is_dense, is_dense)


def test_device_that_is_not_here(packed: Path) -> None:
    """A plan for a device of the table is that of what comes out there: dense on a T4, a byte for each code on an H100."""
    checkpoint = read_checkpoint(packed)
    turing, hopper = (make_plan(prior_facts(name), checkpoint) for name in ("NVIDIA Tesla T4", "NVIDIA H100"))
    assert (turing.quantization, turing.saved) == (None, BFLOAT16)
    codes = sum(one.numel for one in checkpoint.tensors if one.dtype.startswith("float8"))
    others = sum(one.numel for one in checkpoint.tensors if not one.dtype.startswith("float8"))
    assert (hopper.quantization, hopper.storage) == ("fp8", BFLOAT16)
    assert hopper.cost is not None
    assert hopper.cost.weight_bytes == codes + 2 * others


def test_its_config_dequantizes(packed: Path) -> None:
    """Where the config says so it is dequantized on every device, and that is the reason that is given."""
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["dequantize"] = True
    (packed / "config.json").write_text(json.dumps(config))
    hopper = replace(f.TURING, vendor="nvidia", capability="9.0")
    plan = make_plan(hopper, as_loaded(read_checkpoint(packed), hopper), Policy(prefer="memory"))
    assert (plan.quantization, plan.dequantized) == (None, True)
    assert any("its config has it dequantized" in warning for warning in plan.warnings)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed(bits: int, saved: Saved, tmp_path: Path) -> None:
    """Packed weights of compressed-tensors count as what the first forward makes of them: dense, in the config's dtype."""
    folder = Path(shutil.copytree(saved("qwen3"), tmp_path / "int4"))
    plain = load_file(folder / "model.safetensors")
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in plain.items():
        if not name.endswith("proj.weight"):
            weights[name] = tensor.bfloat16()
            continue
        rows, columns = tensor.shape
        weights[f"{name}_packed"] = torch.zeros(rows, columns * bits // 32, dtype=torch.int32)
        weights[f"{name}_scale"] = torch.ones(rows, 1, dtype=torch.bfloat16)
        weights[f"{name}_shape"] = torch.tensor([rows, columns])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    scheme = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", "group_size": -1}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": scheme},
    }  # fmt: skip
    config["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    plan = make_plan(f.TURING, as_loaded(read_checkpoint(folder), f.TURING), Policy())
    scales = sum(2 * one.numel() for name, one in weights.items() if name.endswith("_scale"))
    assert plan.cost is not None
    assert plan.cost.weight_bytes == sum(2 * one.numel() for one in plain.values()) + scales
    assert (plan.quantization, plan.storage) == ("compressed-tensors", BFLOAT16)
    assert any(f"packed in {bits} bit, and its first forward unpacks it" in warning for warning in plan.warnings)


def test_others_stay(saved: Saved) -> None:
    """A checkpoint that no float8 is in is what it is."""
    checkpoint = read_checkpoint(saved("qwen3"))
    assert as_loaded(checkpoint, f.TURING) is checkpoint
    assert as_loaded(replace(checkpoint, quantization="fp8"), f.TURING).quantization == "fp8"


def test_mxfp4(tmp_path: Path) -> None:
    """gpt-oss: dense where transformers dequantizes it, as here, in one dtype and with the bytes of that; codes on a T4."""
    folder = mxfp4(tmp_path / "oss")
    model = quiet(SafeAutoModelForCausalLM.from_pretrained, folder, policy="prefer=memory")
    plan = plan_of(model)
    assert plan.cost is not None
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert (plan.quantization, plan.dequantized, plan.cost.weight_bytes) == (None, True, bytes_of(model))
    assert any("is in MXFP4" in warning for warning in plan.warnings)
    with fault(model, "model.layers.0.mlp", "nan"):
        assert quiet(model, torch.arange(3, 20)[None]).logits.isfinite().all()
    here = make_plan(prior_facts("NVIDIA Tesla T4"), read_checkpoint(folder))
    assert (here.quantization, here.warnings) == ("mxfp4", ())
    volta = make_plan(prior_facts("NVIDIA V100"), read_checkpoint(folder))
    assert (volta.quantization, volta.storage.name) == (None, "float16")
