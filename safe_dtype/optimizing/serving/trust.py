"""Which files of an output folder run code when they are loaded, and whether that code was made here.

`torch.export.load`, `torch.jit.load` and a pickled module unpickle, and an AOTInductor package is native code: whoever
wrote such a file decides what the process that loads it runs. safetensors, ONNX and recipes hold numbers and names.
Each form describes its own files.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from ...errors import NotOptimizedError, UntrustedFolderError
from ...store import recall, remember
from ...store.contained import is_relative, leads_out
from ...store.hashing import sha256_of
from ..forms import forms
from ..nouns.form import FileKind
from ..nouns.record import Optimization

logger = logging.getLogger(__name__)

PICKLE = "a pickled module"
UNKNOWN = "a file of unknown content"

# Files that belong to no form: numbers and names, and the original where it is a module of the caller's own.
_BESIDE = (
    FileKind(".safetensors", "weights", runs_code=False),
    FileKind(".json", "names", runs_code=False),
    FileKind(".pt", PICKLE),
)
_REMEDY = re.compile(r"[\w.]+=[\w.-]*")


def remember_made(out: Path, record: Optimization) -> None:
    """Remember that the code in `out` was made here, so that loading it needs no `trust`.

    The user's cache folder (SAFE_DTYPE_CACHE) holds one note for each content: it is valid after `out` was moved, and on
    every machine that shares that folder.

    Raises:
        NotOptimizedError: If the original is a pickled module and cannot be read.
    """
    for sha256 in _of_code(out, record):
        remember(_key(sha256), {})
        if not _made_here(sha256):
            logger.warning("it cannot be remembered that %s was made here: loading it will need trust=True", out)


def require_trust(folder: Path, files: Mapping[str, str], *, trust: bool) -> None:
    """Raise unless `files`, SHA-256 by name in `folder`, may be loaded.

    Raises:
        NotOptimizedError: If one is missing, or is not what the hash or its name says. `trust` does not help.
        UntrustedFolderError: If one runs code that was not made here, and `trust` is False.
    """
    for name, sha256 in files.items():
        require_inside(folder, name)
        _require_whole(folder, name, sha256)
    foreign = {name: content_of(folder / name) for name, sha256 in files.items() if _runs(name, sha256)}
    if foreign and not trust:
        raise UntrustedFolderError(
            str(folder), " and ".join(f"{content} ({name})" for name, content in foreign.items())
        )


def require_paths(folder: Path, record: Optimization) -> None:
    """Raise unless every path in the record stays in `folder`, and every remedy is one that `optimize` writes.

    Raises:
        NotOptimizedError: If one leads out of it, by itself or over a link.
    """
    for path in _paths(record):
        require_inside(folder, path)
    for remedy in (*record.loaded_with, *(one for attempt in record.attempts for one in attempt.remedies)):
        # transformers takes "owner/kernel" for an attention implementation, and runs what it downloads.
        if not _REMEDY.fullmatch(remedy):
            raise NotOptimizedError(str(folder), f"{remedy!r} is no remedy that `optimize` writes")


def require_inside(folder: Path, path: str) -> None:
    """Raise unless `path`, relative to `folder`, stays in it. A download of the Hub may be links to its own blobs.

    Raises:
        NotOptimizedError: If it is absolute, climbs with "..", or passes over a link that leads out.
    """
    if not is_relative(path):
        raise NotOptimizedError(str(folder), f"optimization.json names {path!r}, which is outside of it")
    if leads_out(folder, path):
        raise NotOptimizedError(str(folder), f"{path!r} is a link to something outside of it")


def original_sha256(folder: Path, record: Optimization) -> str:
    """Return the SHA-256 of an original that is one file: from the record, or of the file where the record has none.

    Raises:
        NotOptimizedError: If that cannot be read.
    """
    if recorded := record.files.get(record.original) or record.files.get(PurePosixPath(record.original).name):
        return recorded
    try:
        return sha256_of(folder / record.original)
    except OSError as exc:
        raise NotOptimizedError(str(folder), f"{record.original} cannot be read ({type(exc).__name__})") from None


def content_of(file: Path) -> str:
    """Return what kind of file it is, by the names of its members and its own. Nothing of it is loaded."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return PICKLE if file.suffix == ".pt" else UNKNOWN  # old versions of torch wrote no archives
    # By the names below the one top folder of the archive. A file with the marks of two kinds is of neither.
    marks = {kind.content: re.compile(kind.mark) for kind in _kinds() if kind.mark}
    kinds = [content for content, mark in marks.items() if any(mark.fullmatch(name) for name in members)]
    if len(kinds) == 1:
        return kinds[0]
    return PICKLE if not kinds and "data.pkl" in members else UNKNOWN


def runs_code(name: str) -> bool:
    """Whether a file of this name runs code when it is loaded; a file of an unknown kind counts as one that does so."""
    kind = _kind_of(name)
    return kind is None or kind.runs_code


def _require_whole(folder: Path, name: str, sha256: str) -> None:
    file = folder / name
    try:
        content_sha256 = sha256_of(file)
    except OSError as exc:
        raise NotOptimizedError(str(folder), f"{name} cannot be read ({type(exc).__name__})") from None
    if content_sha256 != sha256:
        raise NotOptimizedError(str(folder), f"{name} was changed since: its SHA-256 is not the recorded one")
    kind = _kind_of(name)
    if kind is not None and (kind.mark or kind.content == PICKLE) and (content := content_of(file)) != kind.content:
        raise NotOptimizedError(str(folder), f"{name} should be {kind.content}, and is {content}")


def _kinds() -> tuple[FileKind, ...]:
    return (*_BESIDE, *(kind for form in forms() for kind in form.files))


def _kind_of(name: str) -> FileKind | None:
    """Return the kind with the longest ending of `name`; where two forms claim one ending, that which runs code."""
    kinds = (kind for kind in _kinds() if name.endswith(kind.ending))
    return max(kinds, key=lambda kind: (len(kind.ending), kind.runs_code), default=None)


def _runs(name: str, sha256: str) -> bool:
    """Whether a file runs code that was not made here."""
    return runs_code(name) and not _made_here(sha256)


def _of_code(out: Path, record: Optimization) -> Iterator[str]:
    for attempt in record.attempts:
        yield from (sha256 for name, sha256 in attempt.artifact_files.items() if runs_code(name))
    if not record.model_class:
        yield original_sha256(out, record)


def _made_here(sha256: str) -> bool:
    return recall(_key(sha256), lambda _: True) is True


def _key(sha256: str) -> dict[str, str]:
    return {"made here": sha256}


def _paths(record: Optimization) -> Iterator[str]:
    yield record.original
    yield from record.files
    yield from (batch.file for batch in record.batches)
    for attempt in record.attempts:
        yield from (attempt.artifact, attempt.log, *attempt.artifact_files)
