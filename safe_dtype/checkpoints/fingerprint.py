"""What tells one checkpoint from another, without reading it whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..facts import CheckpointFacts, Where

_SAMPLES = 16  # of each file, evenly spread
_SAMPLE_BYTES = 64 * 2**10


def fingerprint(checkpoint: CheckpointFacts, where: Where) -> str:
    """Return a digest of names, shapes and dtypes; of local files also their sizes and samples of what they hold.

    A repository on the Hub is told by its name and revision.

    Raises:
        OSError: If a local file cannot be read.
    """
    tensors = [(one.name, one.dtype, one.shape) for one in checkpoint.tensors]
    found = hashlib.sha256(json.dumps([checkpoint.architecture, tensors]).encode())
    source = Path(where.source)
    if not source.exists():
        found.update(f"{where.source}/{where.subfolder}@{where.revision}".encode())
        return found.hexdigest()
    folder = source / where.subfolder if source.is_dir() else source.parent
    for name in checkpoint.files:
        _add(found, folder / name)
    return found.hexdigest()


def _add(found: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    found.update(str(size).encode())
    with file.open("rb") as stream:
        for number in range(_SAMPLES):
            stream.seek(max(0, (size - _SAMPLE_BYTES)) * number // (_SAMPLES - 1))
            found.update(stream.read(_SAMPLE_BYTES))
