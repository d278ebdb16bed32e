"""GGUF files: their tensors by the gguf package, their config by transformers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CorruptCheckpointError
from ..facts import TensorFacts

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INTEGERS = {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}


def read_gguf(path: Path) -> tuple[tuple[TensorFacts, ...], str | None]:
    """Return the tensors of a GGUF file, and the name of the format that most of its numbers are quantized in.

    Quantized tensors carry their format's name ("q4_k") as their dtype.

    Raises:
        CheckpointError: If the gguf package is missing.
        CorruptCheckpointError: If it is no GGUF file.
    """
    try:
        from gguf import GGUFReader
    except ImportError as exc:
        advice = "`python -m pip install 'safe-dtype[gguf]'`"
        raise CheckpointError(str(path), "reading GGUF needs the package gguf", advice) from exc
    try:
        reader = GGUFReader(str(path))
    except (ValueError, IndexError, OSError) as exc:
        raise CorruptCheckpointError(str(path), f"is no whole GGUF file ({exc})", "download it again") from exc
    tensors = []
    quantized: Counter[str] = Counter()
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        shape = tuple(int(side) for side in reversed(tensor.shape))  # GGUF counts dimensions from the innermost
        tensors.append(TensorFacts(tensor.name, (_FLOATS | _INTEGERS).get(kind, kind.lower()), shape, path.name))
        if kind not in _FLOATS and kind not in _INTEGERS:
            quantized[kind] += int(tensor.n_elements)
    most = quantized.most_common(1)
    return tuple(tensors), f"gguf:{most[0][0]}" if most else None


def gguf_config(path: Path) -> dict[str, Any]:
    """Return the config that transformers makes of the file's own fields; empty where it knows no such architecture."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        config: dict[str, Any] = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    except ValueError:  # "GGUF model with architecture ... is not supported yet."
        return {}
    return config
