"""What becomes of a quantized checkpoint that is not multiplied as it is: float8 and packed weights made dense."""

from __future__ import annotations

import re
from dataclasses import replace

from ..facts import BFLOAT16, COMPUTE, CheckpointFacts, DeviceFacts, Dtype, TensorFacts
from ..rendering.units import bytes_text
from .dense import dense
from .predict import weight_bytes
from .quantizers import Quantizer, quantizer_of

_PACKED = re.compile(r"\.weight_packed$")
_WORD_BYTES = {
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "int8": 1,
    "float32": 4,
}  # of the tensors beside packed ones as well
_FORMATS = {"fp8": "float8", "mxfp8": "MXFP8", "mxfp4": "MXFP4", "metal": "Metal's format"}
_COMPUTED = {dtype.name: dtype for dtype in COMPUTE}


def as_loaded(checkpoint: CheckpointFacts, device: DeviceFacts, *, keeps_codes: bool | None = None) -> CheckpointFacts:
    """Return the facts of what transformers loads on `device`: of float8 and MXFP4 weights their values in bfloat16.

    That is so for `quant_method="fp8"` (DeepSeek-V3, MiniMax-M2) and "mxfp4" (gpt-oss) on CPUs, on GPUs that do not
    multiply them, and where the config has them dequantized. The model is an ordinary one then: its quantizer has left
    it. Packed weights of compressed-tensors are unpacked at the first forward and stay so: dense tensors are what memory
    has to hold.

    Args:
        checkpoint: What the files hold.
        device: Where it is loaded.
        keeps_codes: Whether transformers leaves them as they are; by default as it would on that device.
    """
    if checkpoint.quantization == "compressed-tensors":
        return _unpacked(checkpoint)
    quantizer = quantizer_of(checkpoint)
    if quantizer is None or not quantizer.else_dense:
        return checkpoint
    stays = _keeps_codes(quantizer, device) if keeps_codes is None else keeps_codes
    if stays and not checkpoint.is_to_dequantize:
        return checkpoint
    unpacked = dense(checkpoint, BFLOAT16)
    if unpacked is None:
        return checkpoint
    why = (
        "and its config has it dequantized"
        if checkpoint.is_to_dequantize
        else f"which transformers has no products for on {device.name}"
    )
    text = (
        f"{checkpoint.source} is in {_FORMATS[quantizer.method]}, {why}: loading dequantizes it, to "
        f"{bytes_text(weight_bytes(BFLOAT16, unpacked))} in 16 bit instead of {bytes_text(_packed_bytes(checkpoint))}"
    )
    return replace(unpacked, file_format="dequantized", warnings=(*checkpoint.warnings, text))


def _packed_bytes(checkpoint: CheckpointFacts) -> int:
    return sum(
        tensor.numel * (1 if tensor.dtype.startswith("float8") else _WORD_BYTES.get(tensor.dtype, 2))
        for tensor in checkpoint.tensors
    )


def _unpacked(checkpoint: CheckpointFacts) -> CheckpointFacts:
    """Return the facts of packed weights in the dtype of the config, which the first forward unpacks them to."""
    bits = checkpoint.packed_bits
    packed = [tensor for tensor in checkpoint.tensors if _PACKED.search(tensor.name) and len(tensor.shape) > 1]
    narrow = {tensor.name for tensor in checkpoint.tensors if tensor.dtype.startswith("float8")}
    if bits is None or not (packed or narrow):
        return checkpoint
    dtype = _COMPUTED.get(checkpoint.config_dtype or "", checkpoint.saved)
    tensors = tuple(
        _dense_of_words(tensor, bits, dtype)
        if tensor in packed
        else replace(tensor, dtype=dtype.name)
        if tensor.name in narrow
        else tensor
        for tensor in checkpoint.tensors
        if not tensor.name.endswith(".weight_shape")
    )
    dense = replace(checkpoint, tensors=tensors, loaded_as=dtype)
    text = (
        f"{checkpoint.source} is packed in {bits} bit, and its first forward unpacks it, and it stays unpacked: "
        f"{bytes_text(weight_bytes(dtype, dense))} in {dtype} instead of {bytes_text(_packed_bytes(checkpoint))}"
    )
    return replace(dense, warnings=(*checkpoint.warnings, text))


def _dense_of_words(tensor: TensorFacts, bits: int, dtype: Dtype) -> TensorFacts:
    *rows, words = tensor.shape
    per_word = 8 * _WORD_BYTES.get(tensor.dtype, 1) // bits
    shape = (*rows, words * per_word)
    return replace(tensor, name=_PACKED.sub(".weight", tensor.name), dtype=dtype.name, shape=shape)


def _keeps_codes(quantizer: Quantizer, device: DeviceFacts) -> bool:
    """Whether transformers leaves the codes as they are: it asks NVIDIA's GPUs what they can, others whether they are there."""
    # torch's capability of an AMD GPU is above 8.9 for all that it still supports.
    return device.vendor in ("amd", "intel_gpu", "xpu") or quantizer.problem_on(device) is None
