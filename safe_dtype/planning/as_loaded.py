"""What becomes of a quantized checkpoint that is not multiplied as it is: float8 and packed weights made dense."""

from __future__ import annotations

import re
from dataclasses import replace

from ..facts import BFLOAT16, COMPUTE, CheckpointFacts, DeviceFacts, Dtype, TensorFacts
from ..rendering.units import bytes_text
from .predict import weight_bytes

_FLOAT8_FROM = (8, 9)  # compute capability; as in transformers' FineGrainedFP8HfQuantizer.validate_environment
_PACKED = re.compile(r"\.weight_packed$")
_WORD_BYTES = {
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "int8": 1,
    "float32": 4,
}  # of the tensors beside packed ones as well
_COMPUTED = {dtype.name: dtype for dtype in COMPUTE}
_SCALE = re.compile(r"(_scale_inv|\.scale|\.qscale_weight|\.activation_scale)$")


def as_loaded(
    checkpoint: CheckpointFacts, device: DeviceFacts, *, multiplies_float8: bool | None = None
) -> CheckpointFacts:
    """Return the facts of what transformers loads on `device`: of float8 weights their values in bfloat16.

    That is so for `quant_method="fp8"` (DeepSeek-V3, MiniMax-M2) on CPUs, on GPUs that do not multiply float8, and where
    the config has it dequantized. The model is an ordinary one then: its quantizer has left it. Packed weights of
    compressed-tensors are unpacked at the first forward and stay so: dense tensors are what memory has to hold.

    Args:
        checkpoint: What the files hold.
        device: Where it is loaded.
        multiplies_float8: Whether transformers thinks so; by default as it would of that device.
    """
    if checkpoint.quantization == "compressed-tensors":
        return _unpacked(checkpoint)
    if checkpoint.quantization != "fp8" or not _holds_float8(checkpoint):
        return checkpoint
    does_multiply = _multiplies_float8(device) if multiplies_float8 is None else multiplies_float8
    if does_multiply and not checkpoint.is_to_dequantize:
        return checkpoint
    tensors = tuple(_dense(tensor) for tensor in checkpoint.tensors if not _SCALE.search(tensor.name))
    dense = replace(
        checkpoint, tensors=tensors, saved=BFLOAT16, quantization=None, file_format="dequantized", config_dtype=None
    )
    packed = sum(tensor.numel * (1 if tensor.dtype.startswith("float8") else 2) for tensor in checkpoint.tensors)
    why = (
        "and its config has it dequantized"
        if checkpoint.is_to_dequantize
        else f"which transformers does not multiply on {device.name}"
    )
    text = (
        f"{checkpoint.source} is in float8, {why}: it is dequantized to "
        f"bfloat16, {bytes_text(weight_bytes(BFLOAT16, dense))} instead of {bytes_text(packed)}"
    )
    return replace(dense, warnings=(*checkpoint.warnings, text))


def _unpacked(checkpoint: CheckpointFacts) -> CheckpointFacts:
    """Return the facts of packed weights in the dtype of the config, which the first forward unpacks them to."""
    bits = checkpoint.packed_bits
    packed = [tensor for tensor in checkpoint.tensors if _PACKED.search(tensor.name) and len(tensor.shape) > 1]
    if bits is None or not packed:
        return checkpoint
    dtype = _COMPUTED.get(checkpoint.config_dtype or "", checkpoint.saved)
    tensors = tuple(
        _dense_of_words(tensor, bits, dtype) if tensor in packed else tensor
        for tensor in checkpoint.tensors
        if not tensor.name.endswith(".weight_shape")
    )
    dense = replace(checkpoint, tensors=tensors, loaded_as=dtype)
    packed_bytes = sum(tensor.numel * _WORD_BYTES.get(tensor.dtype, dtype.itemsize) for tensor in checkpoint.tensors)
    text = (
        f"{checkpoint.source} is packed in {bits} bit, and its first forward unpacks it for good: "
        f"{bytes_text(weight_bytes(dtype, dense))} in {dtype} instead of {bytes_text(packed_bytes)}"
    )
    return replace(dense, warnings=(*checkpoint.warnings, text))


def _dense_of_words(tensor: TensorFacts, bits: int, dtype: Dtype) -> TensorFacts:
    *rows, words = tensor.shape
    per_word = 8 * _WORD_BYTES.get(tensor.dtype, 1) // bits
    shape = (*rows, words * per_word)
    return replace(tensor, name=_PACKED.sub(".weight", tensor.name), dtype=dtype.name, shape=shape)


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
