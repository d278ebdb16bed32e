"""The tensors of a safetensors file in pieces that threads read and count, so that memory stays flat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import CheckpointError, CorruptCheckpointError
from ...facts import TensorFacts
from ...hub.headers import read_local_header
from .census import Census

PIECE_BYTES = 64 * 1024 * 1024  # what a thread reads before it takes the next


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor, or a part of it, lies."""

    tensor: TensorFacts
    path: Path
    start: int  # in bytes from the beginning of the file
    stop: int

    @property
    def size(self) -> int:
        """The bytes that it takes."""
        return self.stop - self.start


def spans_of(path: Path) -> list[Span]:
    """Return where the tensors of a safetensors file lie, from its beginning to its end."""
    tensors = read_local_header(path)  # which has checked what is read again here
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    spans = []
    for tensor in tensors:
        start, stop = header[tensor.name]["data_offsets"]
        spans.append(Span(tensor, path, 8 + length + start, 8 + length + stop))
    return sorted(spans, key=lambda span: (span.start, span.stop))


def pieces_of(spans: Iterable[Span], piece_bytes: int = PIECE_BYTES) -> Iterator[list[tuple[int, Span]]]:
    """Yield what is read in one go: parts of one file, neighbours, each with the place of its tensor in `spans`."""
    piece: list[tuple[int, Span]] = []
    for place, span in enumerate(spans):
        for start in range(span.start, span.stop, piece_bytes):
            part = replace(span, start=start, stop=min(start + piece_bytes, span.stop))
            if piece and (piece[0][1].path != part.path or part.stop - piece[0][1].start > piece_bytes):
                yield piece
                piece = []
            piece.append((place, part))
    if piece:
        yield piece


def count_piece(source: str, piece: list[tuple[int, Span]]) -> list[Census]:
    """Return the census of each part of `piece`, in order.

    Raises:
        CorruptCheckpointError: If the file has become shorter since its header was read.
        CheckpointError: If it cannot be read.
    """
    from .counting import LAYOUTS, census_of_span

    path = piece[0][1].path
    try:
        with path.open("rb", buffering=0) as file:
            return [census_of_span(file, one.start, one.stop, LAYOUTS[one.tensor.dtype]) for _, one in piece]
    except ValueError as exc:  # of mmap
        raise CorruptCheckpointError(source, f"{path.name} ends early ({exc})", "download the file again") from exc
    except OSError as exc:
        raise CheckpointError(source, f"{path.name} cannot be read ({exc})") from exc
