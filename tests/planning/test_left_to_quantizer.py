"""Plans of quantized checkpoints: whether their codes run on the device, whether they fit, and what would."""

from __future__ import annotations

from typing import Any

import pytest

from safe_dtype.checkpoints.read import describe
from safe_dtype.devices import prior_facts
from safe_dtype.facts import CheckpointFacts, TensorFacts
from safe_dtype.planning import Ground, Plan, make_plan


def quantized(method: str, *, billions: float = 7, **options: Any) -> CheckpointFacts:
    """Return a decoder whose projections are quantized, and whose head is in float16."""
    width = 4096
    forms = {
        "gptq": (("qweight", "int32", (width // 8, width)), ("scales", "float16", (32, width))),
        "bitsandbytes": (("weight", "uint8", (width * width // 2, 1)), ("weight.absmax", "float32", (width * 64,))),
    }
    float8 = (("weight", "float8_e4m3fn", (width, width)), ("weight_scale_inv", "float32", (32, 32)))
    tensors = [
        TensorFacts(f"layers.{layer}.q.{name}", dtype, shape, "m")
        for layer in range(round(billions * 1e9 / width**2))
        for name, dtype, shape in forms.get(method, float8)
    ]
    tensors.append(TensorFacts("lm_head.weight", "float16", (32000, width), "m"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "num_attention_heads": 32,
        "num_hidden_layers": 32, "vocab_size": 32000, "dtype": "float16",
        "quantization_config": {"quant_method": method, **options},
    }  # fmt: skip
    return describe("quantized", tuple(tensors), config, file_format="safetensors")


def plan_on(device: str, checkpoint: CheckpointFacts) -> Plan:
    """Return its plan for a device of the table."""
    return make_plan(prior_facts(device), checkpoint)


def test_runs() -> None:
    """Where its codes run the quantizer has its own rule, and the packages that it needs are named."""
    plan = plan_on("NVIDIA Tesla T4", quantized("gptq", bits=4))
    assert (plan.quantization, plan.ways, plan.warnings) == ("gptq", (), ())
    assert "its quantizer chooses the dtype" in plan.reason
    assert "needs the packages optimum and gptqmodel" in plan.reason
    assert plan.storage.name == "float16"  # as its config says, not the dtype of its scales


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_without_kernels(method: str) -> None:
    """Where only plain torch multiplies the codes it is left to the quantizer, and that it is slow is said; else not."""
    for device in ("Apple M2 24 GB", "Raspberry Pi 5 8 GB"):
        plan = plan_on(device, quantized(method, bits=4))
        assert plan.quantization == method
        assert "plain torch unpacks the weights at every product, slowly" in plan.reason
    for device in ("NVIDIA Tesla T4", "Intel Xeon Platinum 8480"):
        assert "plain torch" not in plan_on(device, quantized(method, bits=4)).reason


@pytest.mark.parametrize(
    ("method", "options", "device"),
    [
        ("gptq", {"bits": 4, "checkpoint_format": "marlin"}, "NVIDIA V100"),
        ("gptq", {"bits": 4, "is_marlin_format": True}, "Apple M2 24 GB"),
        ("bitsandbytes", {"load_in_4bit": True}, "NVIDIA Tesla K80"),
        ("fbgemm_fp8", {}, "NVIDIA A100"),
    ],
)
def test_does_not_load_there(method: str, options: dict[str, Any], device: str) -> None:
    """Codes that the device does not multiply: it says so, and what would run in their place, with bytes, in one table."""
    plan = plan_on(device, quantized(method, **options))
    (warning,) = plan.warnings
    assert f"quantized does not load on {plan.device_name}" in warning
    assert "take the model that it was quantized from" in warning
    assert [decision.ground for decision in plan.decisions] == [Ground.UNSUPPORTED]
    dense = plan.ways[0]
    assert "not quantized" in dense.name
    assert dense.weight_bytes == pytest.approx(14.3e9, rel=0.01)
    assert dense.fits == (dense.total_bytes <= prior_facts(device).memory.total_bytes)
    text = plan.explain(width=150)
    assert "in its place" in text
    assert "rejected: unsupported" in text
    assert "chosen" not in text


def test_where_it_would_fit_in_fewer_bits() -> None:
    """Only what quantizes on that device is offered: 4 bits on a V100, no 8, and nothing on a K80."""
    codes = quantized("gptq", bits=4, checkpoint_format="marlin")
    names = {
        device: [way.name for way in plan_on(device, codes).ways] for device in ("NVIDIA V100", "NVIDIA Tesla K80")
    }
    assert "int4 weights" in names["NVIDIA V100"]
    assert not [name for name in names["NVIDIA V100"] if "int8" in name]
    assert not [name for name in names["NVIDIA Tesla K80"] if "int" in name]


@pytest.mark.parametrize("device", ["Intel Arc A770", "MI210"])
def test_float8_that_is_left_as_it_is(device: str) -> None:
    """Transformers leaves float8 codes on every Intel and AMD GPU: where it has no float8, how to load it is said."""
    plan = plan_on(device, quantized("fp8"))
    assert plan.quantization == "fp8"
    assert "does not multiply its codes" in plan.reason
    assert "quantization_config=FineGrainedFP8Config(dequantize=True)" in plan.warnings[0]
    assert plan.ways[0].fits


def test_too_large() -> None:
    """Codes that do not fit are not spread unasked, which some quantizers refuse; what would fit is listed."""
    plan = plan_on("NVIDIA Tesla T4", quantized("gptq", billions=70, bits=4))
    assert plan.device_map is None
    assert [decision.ground for decision in plan.decisions] == [Ground.MEMORY]
    assert "it may not load" in plan.warnings[0]
    assert plan.ways[0].name == "as it is"
    assert not plan.ways[0].fits
    assert any("3 devices" in way.name and way.fits for way in plan.ways)


def test_quantized_while_it_loads() -> None:
    """Weights that are quantized on loading are not judged by what they take before."""
    whole = tuple(TensorFacts(f"layers.{n}.weight", "float16", (4096, 4096), "m") for n in range(1000))
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    plan = plan_on("NVIDIA Tesla T4", describe("whole", whole, config, file_format="safetensors"))
    assert (plan.warnings, plan.ways) == ((), ())
