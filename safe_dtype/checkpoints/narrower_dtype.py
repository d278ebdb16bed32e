"""Whether a checkpoint in float32 holds the numbers of a 16-bit format, which somebody has cast up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..facts import BFLOAT16, FLOAT16, FLOAT32, LEAST_NARROWED, Dtype, TensorFacts
from .audit.pieces import Span, spans_of

# Of each matrix: the chance that numbers which were trained in float32 look like bfloat16 is 2^-16 for each one.
_PLACES, _BYTES = 3, 256


def narrower_dtype(tensors: Iterable[TensorFacts], saved: Dtype, paths: Iterable[Path | None]) -> Dtype | None:
    """Return BFLOAT16 or FLOAT16, where it has all numbers that are looked at: some of each large matrix.

    None where it has not, where all of them are zero, or where a file is not on this machine: nobody knows then. Who holds
    a weight in that format looks at every number of it.

    Args:
        tensors: What there is.
        saved: What most of it is saved in.
        paths: Of the safetensors files; None for one that is not here.
    """
    wanted = {one.name for one in tensors if _is_large_matrix(one)}
    if saved != FLOAT32 or not wanted:
        return None
    dtypes, are_zeros = [BFLOAT16, FLOAT16], True
    for path in paths:
        if path is None:
            return None
        try:
            numbers = _samples(path, [span for span in spans_of(path) if span.tensor.name in wanted])
        except OSError:  # who reads the whole file will say so
            return None
        dtypes = [dtype for dtype in dtypes if _has_all(dtype, numbers)]
        are_zeros = are_zeros and not any(numbers)
        if not dtypes:
            return None
    return None if are_zeros else dtypes[0]


def _is_large_matrix(tensor: TensorFacts) -> bool:
    return tensor.dtype == FLOAT32.name and len(tensor.shape) == 2 and tensor.numel >= LEAST_NARROWED


def _samples(path: Path, spans: list[Span]) -> bytes:
    """Return some numbers of each span: from its beginning, its middle and its end."""
    parts = []
    with path.open("rb", buffering=0) as file:
        for span in spans:
            for place in range(_PLACES):
                file.seek(
                    span.start + (span.size - _BYTES) * place // (_PLACES - 1) // FLOAT32.itemsize * FLOAT32.itemsize
                )
                parts.append(file.read(_BYTES))
    return b"".join(parts)


def _has_all(dtype: Dtype, numbers: bytes) -> bool:
    """Whether each of these float32 numbers is one of `dtype`, bit for bit."""
    import numpy as np  # not for `safe-dtype --help`

    words = np.frombuffer(numbers, np.uint32)
    if dtype == BFLOAT16:
        return not (words & 0xFFFF).any()
    with np.errstate(over="ignore"):
        narrowed = words.view(np.float32).astype(np.float16)
    return bool((narrowed.astype(np.float32).view(np.uint32) == words).all())
