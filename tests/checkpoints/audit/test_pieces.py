"""Files in pieces: every byte of every tensor once, whatever the size of a piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from safe_dtype.checkpoints.audit.pieces import count_piece, pieces_of, spans_of
from safe_dtype.errors import CorruptCheckpointError


@pytest.mark.parametrize("piece_bytes", [7, 64, 1000, 10**9])
def test_every_byte_once(tmp_path: Path, piece_bytes: int) -> None:
    """The pieces cover each tensor from its first byte to its last, without a gap and without an overlap."""
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(11, 3), "b": torch.ones(2).half(), "c": torch.ones(100)}, path)
    spans = spans_of(path)
    pieces = list(pieces_of(spans, piece_bytes))
    for place, span in enumerate(spans):
        parts = [part for piece in pieces for at, part in piece if at == place]
        assert [part.start for part in parts] == [span.start, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == span.stop
    assert all(piece[-1][1].stop - piece[0][1].start <= piece_bytes for piece in pieces)
    assert sum(part.size for piece in pieces for _, part in piece) == 4 * 33 + 2 * 2 + 4 * 100


def test_neighbours_of_two_files_stay_apart(tmp_path: Path) -> None:
    """A piece lies in one file, however small the files are."""
    for name in ("one", "two"):
        safetensors.torch.save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    spans = [span for name in ("one", "two") for span in spans_of(tmp_path / f"{name}.safetensors")]
    assert [len(piece) for piece in pieces_of(spans)] == [1, 1]


def test_truncated_meanwhile(tmp_path: Path) -> None:
    """A file that loses its end after its header was read is refused as well."""
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1000)}, path)
    (piece,) = pieces_of(spans_of(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptCheckpointError, match="ends early"):
        count_piece("here", piece)
