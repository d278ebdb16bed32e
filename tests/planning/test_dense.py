"""What a quantized checkpoint was made from: its codes as numbers, and nothing of what stands beside them."""

from __future__ import annotations

import pytest

from safe_dtype.checkpoints.read import describe
from safe_dtype.facts import BFLOAT16, CheckpointFacts, TensorFacts
from safe_dtype.planning.dense import dense

NORM = TensorFacts("model.norm.weight", "bfloat16", (64,), "m")
OUT, IN = 128, 64


def checkpoint(quantization: dict[str, object], *tensors: tuple[str, str, tuple[int, ...]]) -> CheckpointFacts:
    """Return one layer of OUT x IN in codes, and a norm."""
    listed = (*(TensorFacts(f"model.layers.0.{name}", dtype, shape, "m") for name, dtype, shape in tensors), NORM)
    config = {"hidden_size": IN, "architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    return describe("a", listed, config, file_format="safetensors")


GPTQ = checkpoint(
    {"quant_method": "gptq", "bits": 4},
    ("q.qweight", "int32", (IN // 8, OUT)), ("q.qzeros", "int32", (1, OUT // 8)),
    ("q.scales", "float16", (1, OUT)), ("q.g_idx", "int32", (IN,)),
)  # fmt: skip
AWQ = checkpoint(
    {"quant_method": "awq", "bits": 4},
    ("q.qweight", "int32", (IN, OUT // 8)), ("q.qzeros", "int32", (1, OUT // 8)), ("q.scales", "float16", (1, OUT)),
)  # fmt: skip
NF4 = checkpoint(
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ("q.weight", "uint8", (OUT * IN // 2, 1)), ("q.weight.absmax", "uint8", (OUT * IN // 64,)),
    ("q.weight.nested_absmax", "float32", (1,)), ("q.weight.quant_map", "float32", (16,)),
    ("q.weight.quant_state.bitsandbytes__nf4", "uint8", (90,)),
)  # fmt: skip
INT8 = checkpoint(
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ("q.weight", "int8", (OUT, IN)), ("q.SCB", "float32", (OUT,)), ("q.weight_format", "uint8", ()),
)  # fmt: skip
FP8 = checkpoint(
    {"quant_method": "fp8"}, ("q.weight", "float8_e4m3fn", (OUT, IN)), ("q.weight_scale_inv", "float32", (1, 1))
)
MXFP4 = checkpoint(
    {"quant_method": "mxfp4"},
    ("gate_up_proj_blocks", "uint8", (1, OUT, IN // 32, 16)), ("gate_up_proj_scales", "uint8", (1, OUT, IN // 32)),
)  # fmt: skip


@pytest.mark.parametrize(
    "codes", [GPTQ, AWQ, NF4, INT8, FP8, MXFP4], ids=["gptq", "awq", "nf4", "int8", "fp8", "mxfp4"]
)
def test_codes_as_numbers(codes: CheckpointFacts) -> None:
    """As many numbers as were quantized, in the shape that multiplies, and no scale or zero point among them."""
    original = dense(codes, BFLOAT16)
    assert original is not None
    assert (original.quantization, original.saved) == (None, BFLOAT16)
    assert {tensor.dtype for tensor in original.tensors} == {"bfloat16"}
    assert original.parameters == OUT * IN + NORM.numel
    assert [(linear.out_features, linear.in_features, linear.count) for linear in original.linears] == [(OUT, IN, 1)]


def test_no_codes() -> None:
    """Where no code is known there is nothing to unpack: quantized while it loads, or in a format of its own."""
    plain = checkpoint({"quant_method": "bitsandbytes", "load_in_4bit": True}, ("q.weight", "bfloat16", (OUT, IN)))
    assert dense(plain, BFLOAT16) is None
    assert dense(checkpoint({"quant_method": "hqq"}, ("q.W_q", "uint8", (OUT, IN))), BFLOAT16) is None


def test_scales_of_the_model() -> None:
    """A number of the model that is called a scale is no scale of codes."""
    codes = checkpoint(
        {"quant_method": "fp8"}, ("logit_scale", "bfloat16", (1,)), ("q.weight", "float8_e4m3fn", (OUT, IN))
    )
    original = dense(codes, BFLOAT16)
    assert original is not None
    assert "model.layers.0.logit_scale" in {tensor.name for tensor in original.tensors}
