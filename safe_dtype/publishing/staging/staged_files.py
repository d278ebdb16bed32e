"""The files of a staged folder: their digests, and the dtypes that their headers name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...facts.variant import VARIANT_FILE
from ...hub.headers import read_local_header
from ...store.hashing import read_all, sha256_of
from .evidence import DtypeCount, StagedFile

CARD = "README.md"


def paths_of(folder: Path) -> Iterator[str]:
    """Yield every file of `folder` by its path in it, with "/"."""
    yield from sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def digests_of(folder: Path) -> dict[str, StagedFile]:
    """Return size and SHA-256 of every file but the card and the evidence, which are made from them."""
    files = {path: folder / path for path in paths_of(folder) if path not in (CARD, VARIANT_FILE)}
    hashes = read_all(files, sha256_of)
    return {path: StagedFile(file.stat().st_size, hashes[path]) for path, file in files.items()}


def counts_of(folder: Path) -> dict[str, DtypeCount]:
    """Return how much there is in each dtype, from the headers of the safetensors files.

    Raises:
        CorruptCheckpointError: If a header and its file contradict each other.
    """
    counts: dict[str, DtypeCount] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for tensor in read_local_header(path):
            now = counts.get(tensor.dtype, DtypeCount(0, 0))
            counts[tensor.dtype] = DtypeCount(now.tensors + 1, now.numbers + tensor.numel)
    return dict(sorted(counts.items(), key=lambda item: -item[1].numbers))
