"""The header of a safetensors file: read, and checked against itself and against the file's size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import CorruptCheckpointError
from ..facts import TensorFacts
from ..store import parse_json

# The format's names, and torch's for the same.
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "F4": 4,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # the format's own limit, in bytes


def read_local_header(path: Path) -> tuple[TensorFacts, ...]:
    """Return the tensors of one local safetensors file, without reading any of them.

    Raises:
        CorruptCheckpointError: If header and file contradict each other.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _LONGEST_HEADER or 8 + length > size:
            _fail(path, f"has no whole header: it would be {length:,} bytes long, and the file has {size:,}")
        try:
            header = parse_json(file.read(length))
        except ValueError as exc:
            raise _corrupt(path, f"has a header that is no JSON ({exc})") from exc
    tensors, end = _parsed(header, path)
    if 8 + length + end != size:
        how = "truncated" if size < 8 + length + end else "longer than it says"
        _fail(path, f"is {how}: its header speaks of {8 + length + end:,} bytes, and the file has {size:,}")
    return tensors


def _parsed(header: Any, file: Path) -> tuple[tuple[TensorFacts, ...], int]:
    """Return the tensors that a parsed header describes, and the bytes they fill together.

    Raises:
        CorruptCheckpointError: If an entry is no tensor's, or the tensors leave gaps or overlap.
    """
    tensors = []
    spans = []
    for name, entry in header.items() if isinstance(header, dict) else _fail(file, "has a header that is no table"):
        if name == "__metadata__":
            continue
        try:
            kind, shape, (start, end) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
            needed = math.prod(shape) * _BITS.get(kind, 8) // 8
        except (KeyError, TypeError, ValueError) as exc:
            raise _corrupt(file, f"describes {name} in a way that is no tensor's ({exc!r})") from exc
        if kind not in TORCH_NAMES:
            _fail(file, f"holds {name} in {kind}, a format that nobody here knows")
        if end - start != needed:
            _fail(file, f"gives {name}, {kind} of shape {list(shape)}, {end - start:,} bytes instead of {needed:,}")
        tensors.append(TensorFacts(name, TORCH_NAMES[kind], shape, file.name))
        spans.append((start, end, name))
    filled = 0
    for start, end, name in sorted(spans):
        if start != filled:
            _fail(file, f"has {name} begin at byte {start:,}, and what comes before it ends at {filled:,}")
        filled = end
    return tuple(tensors), filled


def _corrupt(file: Path, problem: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(str(file), problem, "download the file again")


def _fail(file: Path, problem: str) -> Any:
    raise _corrupt(file, problem)
