"""The models that people publish load planned and guarded, take what their processors return, and outlive a fault anywhere."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from published_models import PUBLISHED
from tiny_models import float8

from safe_dtype import FailureKind, SafeAutoModel, detect, make_plan, plan_of, read_checkpoint, report
from safe_dtype.models.forwards.module_forward import take_off, value_of
from safe_dtype.models.forwards.norm_forward import CompiledNorm
from safe_dtype.testing import fault

DTYPES = ("bfloat16", "float16", "float32")
PARTS = [pytest.param(name, part, id=f"{name}-{part}") for name, one in PUBLISHED.items() for part in one.parts]
# What loading says of an unknown model type, and of float16 where no text reaches every part.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*transformers knows no model type 'kimi_k2'",
    "ignore:.*float16 was (measured on a text|asked for)",
    "ignore:.*is in float8, which transformers has no products for",
)
# Older ones fail over experts in float8 where torch has no grouped products.
with_experts_in_float8 = pytest.mark.needs("transformers>=5.18")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each is saved, in bfloat16."""
    return {name: one.save(tmp_path_factory.mktemp(name) / "model") for name, one in PUBLISHED.items()}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each is saved in float16, so that nobody asks whether it fits that."""
    return {name: one.save(tmp_path_factory.mktemp(name) / "model", torch.float16) for name, one in PUBLISHED.items()}


@torch.no_grad()
def numbers(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return all that `model` gives for `inputs`, and what it goes on with where it speaks."""
    given = {name: one for name, one in model(**inputs).items() if isinstance(one, torch.Tensor)}
    if "input_ids" in inputs:
        given["generated"] = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return given


def plain(name: str, folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """Return what plain transformers gives, its inputs cast by hand."""
    wanted = getattr(torch, dtype)
    model = type(PUBLISHED[name].make()).from_pretrained(folder, dtype=wanted).eval()
    inputs = PUBLISHED[name].inputs()
    return numbers(model, {key: one.to(wanted) if one.is_floating_point() else one for key, one in inputs.items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_as_in_plain_transformers(name: str, dtype: str, folders: dict[str, Path], halves: dict[str, Path]) -> None:
    """In every dtype it gives the bits of plain transformers, for inputs in float32, and nothing has to be mended.

    But for its norms: compiled, one in some hundred rows is a rounding from what its class computes.
    """
    folder = (halves if dtype == "float16" else folders)[name]
    model = SafeAutoModel.from_pretrained(folder, dtype=dtype)
    assert str(plan_of(model).storage) == dtype
    compiled, theirs = numbers(model, PUBLISHED[name].inputs()), plain(name, folder, dtype)
    for norm in [module for module in model.modules() if isinstance(value_of(module), CompiledNorm)]:
        take_off(norm)
    ours = numbers(model, PUBLISHED[name].inputs())
    assert report(model).events == ()
    for key, tensor in theirs.items():
        assert tensor.isfinite().all()
        assert torch.equal(ours[key], tensor), key
        if tensor.is_floating_point():
            allowed = 4 * torch.finfo(tensor.dtype).eps * tensor.abs().max()
            assert (compiled[key] - tensor).abs().max() <= allowed, key


@pytest.mark.parametrize("name", PUBLISHED)
def test_planned(name: str, folders: dict[str, Path]) -> None:
    """Without a dtype one is planned, and the model is of the class that its config names."""
    model = SafeAutoModel.from_pretrained(folders[name])
    assert type(model) is type(PUBLISHED[name].make())
    assert plan_of(model).decisions
    assert all(one.isfinite().all() for one in numbers(model, PUBLISHED[name].inputs()).values())


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_fault_in_a_part(name: str, part: str, folders: dict[str, Path]) -> None:
    """NaN out of one part in bfloat16: the event names it, and what comes out is what float32 gives."""
    model = SafeAutoModel.from_pretrained(folders[name], dtype="bfloat16", policy="auto,ladder=bf16>fp32")
    with pytest.warns(match="bfloat16 was asked for"), fault(model, part, "nan"):
        ours = numbers(model, PUBLISHED[name].inputs())
    events = report(model).events
    assert [event.kind for event in events] == [FailureKind.NONFINITE]
    assert str(events[0].module).startswith(part)
    for key, tensor in plain(name, folders[name], "float32").items():
        assert torch.equal(ours[key], tensor), key


@pytest.fixture(scope="module")
def float8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniMax-M2 as it is published: in float8 with blocks of scales, its router and its head in bfloat16 beside that."""
    folder = PUBLISHED["minimax-m2"].save(tmp_path_factory.mktemp("float8") / "model")
    return float8(folder, endings=("proj.weight", "w1.weight", "w2.weight", "w3.weight"))


@pytest.fixture(scope="module")
def dequantized(float8_folder: Path) -> torch.Tensor:
    """What plain transformers gives with the weights made float32."""
    config = tf.FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 16))
    model = tf.MiniMaxM2ForCausalLM.from_pretrained(float8_folder, dtype=torch.float32, quantization_config=config)
    return numbers(model.float().eval(), PUBLISHED["minimax-m2"].inputs())["logits"]  # it leaves some in bfloat16


@with_experts_in_float8
@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_minimax_m2_in_float8(dtype: str | None, float8_folder: Path, dequantized: torch.Tensor) -> None:
    """In every dtype it is a model of one dtype, and close to its own weights in float32."""
    model = SafeAutoModel.from_pretrained(float8_folder, **({"dtype": dtype} if dtype else {}))
    assert len({weight.dtype for weight in model.parameters()}) == 1
    ours = numbers(model, PUBLISHED["minimax-m2"].inputs())["logits"].float()
    assert (ours - dequantized).square().mean().sqrt() < 0.03 * dequantized.square().mean().sqrt()


@with_experts_in_float8
def test_fault_in_float8(float8_folder: Path, dequantized: torch.Tensor) -> None:
    """A fault in its experts in bfloat16 is mended as in any other model."""
    model = SafeAutoModel.from_pretrained(float8_folder, dtype="bfloat16", policy="auto,ladder=bf16>fp32")
    with pytest.warns(match="bfloat16 was asked for"), fault(model, "model.layers.1.mlp.experts", "nan"):
        ours = numbers(model, PUBLISHED["minimax-m2"].inputs())["logits"].float()
    assert [event.kind for event in report(model).events] == [FailureKind.NONFINITE]
    assert (ours - dequantized).square().mean().sqrt() < 0.03 * dequantized.square().mean().sqrt()


@pytest.fixture
def int4_folder(tmp_path: Path) -> Path:
    """Kimi-K2-Thinking as its config says it is published: routed experts in INT4, in the form of compressed-tensors."""
    folder = PUBLISHED["kimi-k2"].save(tmp_path / "model")
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    }
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"quantization_config": quantization}), encoding="utf-8")
    return folder


def test_kimi_k2_thinking_is_planned(int4_folder: Path) -> None:
    """A plan for it leaves the dtype to its quantizer, and names the package that it needs."""
    plan = make_plan(detect()[-1], read_checkpoint(int4_folder))
    assert (plan.quantization, plan.storage.name) == ("compressed-tensors", "bfloat16")
    assert "needs the package compressed-tensors" in plan.reason


@pytest.mark.skipif(find_spec("compressed_tensors") is not None, reason="compressed-tensors is installed")
def test_kimi_k2_thinking_without_its_package(int4_folder: Path) -> None:
    """Without the package it is not loaded as something else: the error names the package."""
    with pytest.raises(ImportError, match="compressed-tensors"):
        SafeAutoModel.from_pretrained(int4_folder)
