"""What transformers makes of a quantized checkpoint that it cannot multiply as it is: an ordinary one in bfloat16."""

from __future__ import annotations

import re
from dataclasses import replace

from ..facts import BFLOAT16, CheckpointFacts, DeviceFacts, TensorFacts
from ..rendering.units import bytes_text
from .predict import weight_bytes

_FLOAT8_FROM = (8, 9)  # compute capability; as in transformers' FineGrainedFP8HfQuantizer.validate_environment
_SCALE = re.compile(r"(_scale_inv|\.scale|\.qscale_weight|\.activation_scale)$")


def as_loaded(checkpoint: CheckpointFacts, device: DeviceFacts) -> CheckpointFacts:
    """Return the facts of what transformers loads on `device`: of float8 weights their values in bfloat16.

    That is so for `quant_method="fp8"` (DeepSeek-V3, MiniMax-M2) on CPUs, and on GPUs that do not multiply float8. The
    model is an ordinary one then: its quantizer has left it.
    """
    if checkpoint.quantization != "fp8" or _multiplies_float8(device) or not _holds_float8(checkpoint):
        return checkpoint
    tensors = tuple(_dense(tensor) for tensor in checkpoint.tensors if not _SCALE.search(tensor.name))
    dense = replace(
        checkpoint, tensors=tensors, saved=BFLOAT16, quantization=None, file_format="dequantized", config_dtype=None
    )
    packed = sum(tensor.numel * (1 if tensor.dtype.startswith("float8") else 2) for tensor in checkpoint.tensors)
    text = (
        f"{checkpoint.source} is in float8, which transformers does not multiply on {device.name}: it is dequantized to "
        f"bfloat16, {bytes_text(weight_bytes(BFLOAT16, dense))} instead of {bytes_text(packed)}"
    )
    return replace(dense, warnings=(*checkpoint.warnings, text))


def _holds_float8(checkpoint: CheckpointFacts) -> bool:
    return any(tensor.dtype.startswith("float8") for tensor in checkpoint.tensors)


def _dense(tensor: TensorFacts) -> TensorFacts:
    return replace(tensor, dtype=BFLOAT16.name) if tensor.dtype.startswith("float8") else tensor


def _multiplies_float8(device: DeviceFacts) -> bool:
    if device.vendor in ("amd", "intel_gpu", "xpu"):  # torch's capability of an AMD GPU is above 8.9 for all of them
        return True
    capability = re.fullmatch(r"(\d+)\.(\d+)", device.capability)
    return (
        device.vendor == "nvidia" and capability is not None and tuple(map(int, capability.groups())) >= _FLOAT8_FROM
    )
