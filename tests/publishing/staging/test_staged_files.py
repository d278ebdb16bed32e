"""The files of a staged folder, as they are counted and hashed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from publishing.stages import safetensors, sharded, written

from safe_dtype.errors import CorruptCheckpointError
from safe_dtype.publishing.staging.evidence import DtypeCount
from safe_dtype.publishing.staging.staged_files import counts_of, digests_of, paths_of


def test_paths_and_digests(tmp_path: Path) -> None:
    """Every file counts, below folders too; the card and the evidence, which are made from the digests, have none."""
    files = sharded()
    folder = written(tmp_path, files)
    assert list(paths_of(folder)) == sorted(files)
    digests = digests_of(folder)
    assert set(digests) == set(files) - {"README.md", "safe_dtype.json"}
    for path, file in digests.items():
        assert (file.size, file.sha256) == (len(files[path]), sha256(files[path]).hexdigest())


def test_counts(tmp_path: Path) -> None:
    """Tensors and numbers of each dtype, over all files, the most common dtype first."""
    files = {"a.safetensors": safetensors("F32", "x"), "b.safetensors": safetensors("F16", "y", "z")}
    counts = counts_of(written(tmp_path, files))
    assert list(counts.items()) == [("float16", DtypeCount(2, 8)), ("float32", DtypeCount(1, 2))]


def test_a_cut_file(tmp_path: Path) -> None:
    """A file that is shorter than its header says is not counted."""
    written(tmp_path, {"a.safetensors": safetensors("F32", "x")[:-1]})
    with pytest.raises(CorruptCheckpointError, match="truncated"):
        counts_of(tmp_path)
