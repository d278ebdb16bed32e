"""The largest numbers of the few tensors that most of a checkpoint's format may not hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..facts import FLOAT16, Dtype, TensorFacts
from .audit.census import Census
from .audit.pieces import count_piece, pieces_of, spans_of

_WIDER = ("float64", "float32", "bfloat16")  # whose numbers may lie beyond float16
_MOST_BYTES = 256 * 2**20  # what is read of them: in files that mix formats they are norms, gates and decays


def with_largest(
    source: str, tensors: tuple[TensorFacts, ...], saved: Dtype, paths: Iterable[Path | None]
) -> tuple[TensorFacts, ...]:
    """Return `tensors`, those of a wider range in a checkpoint in float16 with the largest of their numbers.

    Only of safetensors files that are on this machine; elsewhere nobody knows.

    Args:
        source: The checkpoint, for errors.
        tensors: What there is.
        saved: What most of it is saved in.
        paths: Of the files, in order; None for one that is not here.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    names = {one.name for one in tensors if one.dtype in _WIDER}
    if saved != FLOAT16 or not names:
        return tensors
    local = [path for path in paths if path is not None]
    spans = [span for path in local for span in spans_of(path) if span.tensor.name in names]
    if sum(span.size for span in spans) > _MOST_BYTES:
        return tensors
    largest: dict[str, float] = {}
    for piece in pieces_of(spans):
        counts: list[Census] = count_piece(source, piece)
        for (place, _), count in zip(piece, counts, strict=True):
            name = spans[place].tensor.name
            largest[name] = max(largest.get(name, 0.0), count.largest)
    return tuple(replace(one, largest=largest.get(one.name)) for one in tensors)
