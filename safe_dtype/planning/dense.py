"""The tensors that a quantized checkpoint has without its quantizer: codes unpacked, scales gone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

from ..facts import CheckpointFacts, Dtype, LinearFacts, TensorFacts

_WORD_BITS = {"int64": 64, "int32": 32, "int16": 16, "uint8": 8, "int8": 8}
# What stands beside codes, and is not there without them.
_BESIDE = re.compile(
    r"(\.qzeros|\.scales|\.g_idx|\.SCB|\.weight_format|\.weight\.(nested_)?(absmax|quant_map)|\.weight\.quant_state\..*"
    r"|_scale_inv|\.(weight|input)_scale|_proj_scales|\.scale|\.qscale_weight|\.activation_scale"
    r"|\.weight_(shape|zero_point|g_idx))$"
)


def dense(checkpoint: CheckpointFacts, dtype: Dtype) -> CheckpointFacts | None:
    """Return the facts of a quantized checkpoint with every code as a number of `dtype`; None where it holds no code that is known.

    Its products are those of the codes and those that were there: what was packed is a linear layer.
    """
    unpacked = {tensor.name: _unpacked(tensor, checkpoint, dtype) for tensor in checkpoint.tensors}
    codes = [tensor for tensor in unpacked.values() if tensor is not None]
    if not codes:
        return None
    tensors = tuple(
        unpacked[tensor.name] or tensor for tensor in checkpoint.tensors if not _BESIDE.search(tensor.name)
    )
    known = {(linear.out_features, linear.in_features) for linear in checkpoint.linears}
    return replace(
        checkpoint,
        tensors=tensors,
        linears=(*checkpoint.linears, *_linears(codes, known)),
        saved=dtype,
        config_dtype=None,
        quantization=None,
        loaded_as=None,
    )


def _unpacked(tensor: TensorFacts, checkpoint: CheckpointFacts, dtype: Dtype) -> TensorFacts | None:
    """Return a tensor of codes as numbers; None where it holds none."""
    if _BESIDE.search(tensor.name):
        return None
    if tensor.dtype.startswith("float8"):
        return replace(tensor, dtype=dtype.name)
    word, bits = _WORD_BITS.get(tensor.dtype), checkpoint.packed_bits
    shape = name = None
    if word and checkpoint.quantization == "mxfp4":  # (experts, rows, blocks, bytes of two numbers each)
        name, shape = _without(tensor.name, "_blocks", ""), (*tensor.shape[:-2], math.prod(tensor.shape[-2:]) * 2)
    elif word and bits and len(tensor.shape) == 2 and checkpoint.quantization == "bitsandbytes":
        name, shape = _without(tensor.name, ".weight", ".weight"), _of_bitsandbytes(tensor, checkpoint, word // bits)
    elif word and bits and len(tensor.shape) == 2:
        name, shape = _without(tensor.name, ".qweight", ".weight"), _of_words(tensor, checkpoint, word, bits)
    return replace(tensor, name=name, dtype=dtype.name, shape=shape) if name and shape else None


def _without(name: str, suffix: str, instead: str) -> str | None:
    return name.removesuffix(suffix) + instead if name.endswith(suffix) else None


def _of_words(tensor: TensorFacts, checkpoint: CheckpointFacts, word: int, bits: int) -> tuple[int, int]:
    """Return (out, in) of GPTQ's (in / numbers of a word, out), and of AWQ's (in, out / numbers of a word)."""
    rows, columns = tensor.shape
    if checkpoint.quantization == "awq":
        return columns * word // bits, rows
    return columns, rows * word // bits


def _of_bitsandbytes(tensor: TensorFacts, checkpoint: CheckpointFacts, per_byte: int) -> tuple[int, int]:
    """Return the shape of 8 bit, and of 4 bit, which lie in one column, one with as many numbers."""
    rows, columns = tensor.shape
    width = checkpoint.hidden_size
    if per_byte == 1 or not width or rows * columns * per_byte % width:
        return rows * per_byte, columns
    return rows * columns * per_byte // width, width


def _linears(codes: Iterable[TensorFacts], known: set[tuple[int, int]]) -> Iterable[LinearFacts]:
    for tensor in codes:
        *many, rows, columns = tensor.shape if len(tensor.shape) > 1 else (1, *tensor.shape)
        if (rows, columns) not in known:
            yield LinearFacts(rows, columns, math.prod(many))
