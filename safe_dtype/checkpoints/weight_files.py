"""The files that weights were loaded from, marked, so that another file in the place of one is noticed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CheckpointError
from ..facts import TensorFacts, Where
from ..hub.headers import read_local_header
from .model_files import Files, files_of
from .read import base_of, is_adapter
from .weights import file_names


@dataclass(frozen=True, slots=True)
class FileMark:
    """One file as it was: where it is, and what changes when it is written to or replaced."""

    path: Path  # absolute, links resolved: of the Hub's cache the blob, whose name is the digest of its content
    device: int
    inode: int
    size: int  # in bytes
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileMark:
        """Mark the file at `path` as it is now.

        Raises:
            OSError: If it cannot be found.
        """
        resolved = path.resolve(strict=True)
        return cls(resolved, *_marks(resolved.stat()))

    def is_of(self, status: os.stat_result) -> bool:
        """Whether a file with this status is the marked one, and nobody has written to it since."""
        return _marks(status) == (self.device, self.inode, self.size, self.modified_ns, self.changed_ns)


def _marks(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """All the files that hold the weights of one model."""

    source: str  # as the user wrote it
    marks: tuple[FileMark, ...] = ()
    file_format: str = "safetensors"  # or "pytorch"
    tensors: tuple[TensorFacts, ...] = ()  # what their headers describe; empty of pickles, which are not read for it
    problem: str = ""  # why the files are not known, or cannot be read tensor by tensor


def mark_weight_files(where: Where, explicit: str | None = None) -> WeightFiles:
    """Return the files that transformers loads the weights of `where` from, as they are now.

    Nothing is downloaded. Where the files are not known, `problem` says why. `explicit` is the config's
    `transformers_weights`.
    """
    try:
        return _mark(replace(where, local_files_only=True), explicit)
    except OSError as exc:  # a CheckpointError is one
        return WeightFiles(where.name, problem=exc.problem if isinstance(exc, CheckpointError) else str(exc))


def _mark(where: Where, explicit: str | None) -> WeightFiles:
    path = Path(where.source)
    if where.gguf_file or path.suffix == ".gguf":
        return WeightFiles(where.name, problem="tensors of a GGUF file are converted as a whole")
    if path.is_file():
        return _marked(where.name, [path])
    files = files_of(where)
    if is_adapter(files):
        return _mark(base_of(where, files), explicit)
    names = file_names(where, files, explicit)
    return _marked(where.name, [_on_disk(where, files, name) for name in names])


def _on_disk(where: Where, files: Files, name: str) -> Path:
    path = files.on_disk(name)
    if path is None:
        raise CheckpointError(where.name, f"{name} is not on this machine")
    return path


def _marked(source: str, paths: list[Path]) -> WeightFiles:
    is_safe = all(path.suffix == ".safetensors" for path in paths)
    marks = tuple(map(FileMark.of, paths))
    tensors = tuple(tensor for path in paths for tensor in read_local_header(path)) if is_safe else ()
    if any(tensor.dtype.startswith("float8") for tensor in tensors):
        return WeightFiles(source, problem="its float8 weights are dequantized as they are loaded")
    if any(tensor.dtype == "uint8" and tensor.name.endswith("_proj_blocks") for tensor in tensors):
        return WeightFiles(source, problem="its MXFP4 weights are dequantized as they are loaded")
    return WeightFiles(source, marks, "safetensors" if is_safe else "pytorch", tensors)
