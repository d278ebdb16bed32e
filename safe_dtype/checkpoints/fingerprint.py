"""What tells one checkpoint from another, without reading it whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from ..facts import CheckpointFacts, CheckpointIdentity, TensorFacts, Where

_SAMPLES = 16  # of each file, evenly spread
_SAMPLE_BYTES = 64 * 2**10


def fingerprint(checkpoint: CheckpointFacts, where: Where) -> str:
    """Return the digest under which results are remembered: of names, shapes and dtypes, and of what the files hold.

    Local files are identified by their sizes and samples of their bytes, a repository on the Hub by its name and commit.

    Raises:
        OSError: If a local file cannot be read.
    """
    tensors = [(one.name, one.dtype, one.shape) for one in checkpoint.tensors]
    digest = hashlib.sha256(json.dumps([checkpoint.architecture, tensors]).encode())
    source = Path(where.source)
    if not source.exists():
        commit = checkpoint.identity.commit if checkpoint.identity else None
        digest.update(f"{where.source}/{where.subfolder}@{commit or where.revision}".encode())
        return digest.hexdigest()
    folder = source / where.subfolder if source.is_dir() else source.parent
    for name in checkpoint.files:
        _add(digest, folder / name)
    return digest.hexdigest()


def identity_of(
    tensors: Iterable[TensorFacts],
    files: Iterable[Path | None],
    *,
    blobs: Iterable[str | None] = (),
    commit: str | None = None,
) -> CheckpointIdentity:
    """Return what tells this checkpoint from others, wherever a copy of it lies.

    Args:
        tensors: What the files hold.
        files: The files, in order; None for one that is not on this machine.
        blobs: The Hub's digests of them, in order; None for one that has none.
        commit: The commit of a repository on the Hub.

    Raises:
        OSError: If a file cannot be read.
    """
    listed = sorted((one.name, one.dtype, one.shape) for one in tensors)
    paths, digests = list(files), list(blobs)
    contents = hashlib.sha256()
    for path in paths:
        if path is not None:
            _add(contents, path)
    return CheckpointIdentity(
        tensors=hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
        contents=contents.hexdigest() if paths and None not in paths else None,
        blobs=hashlib.sha256(json.dumps(digests).encode()).hexdigest() if digests and None not in digests else None,
        commit=commit,
    )


def _add(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        for number in range(_SAMPLES):
            stream.seek(max(0, (size - _SAMPLE_BYTES)) * number // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
