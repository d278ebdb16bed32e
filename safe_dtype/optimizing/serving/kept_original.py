"""What eager is loaded from: the very files that were optimized, by their hashes, and nothing beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from ...errors import MissingShardError, NotOptimizedError
from ...store.hashing import read_all, sha256_of
from ..environment import files_in
from ..nouns.record import Optimization
from .trust import original_sha256, require_inside

Sha256s = Mapping[str, str]  # by path in the output folder


def original_files(folder: Path, record: Optimization) -> Sha256s:
    """Return the hash of every file that the original consists of; empty where the record has none.

    Raises:
        NotOptimizedError: If it is one file, of which the record has no hash, and that cannot be read.
    """
    if not record.model_class:
        return {record.original: original_sha256(folder, record)}
    return {PurePosixPath(record.original, name).as_posix(): sha256 for name, sha256 in record.files.items()}


def require_original(folder: Path, record: Optimization, files: Sha256s) -> None:
    """Raise unless the original in `folder` is `files`, byte for byte. Reads all of them, several at a time.

    Documents and hidden files are left out, since no loader reads them. A file that was added counts: transformers would
    load an adapter, or other shards, in the place of what was optimized.

    Raises:
        NotOptimizedError: If a file was changed, added or removed, or is a link that leads out of the folder.
    """
    expected = {path: sha256 for path, sha256 in files.items() if _is_loaded(path)}
    if not expected:
        raise NotOptimizedError(str(folder), "the record lists no files of the original, so it cannot be checked")
    for path in expected:
        require_inside(folder, path)
    there = _there(folder, record)
    if missing := sorted(expected.keys() - there):
        raise _unloadable(folder, record, f"{', '.join(missing)} is not there")
    if added := sorted(there - expected.keys()):
        raise NotOptimizedError(
            str(folder), f"the original has {', '.join(added)}, which the record does not list: it would be loaded"
        )
    for path, sha256 in _hashes(folder, record, expected).items():
        if sha256 != expected[path]:
            problem = f"{path} was changed since it was optimized: its SHA-256 is not the recorded one"
            raise NotOptimizedError(str(folder), problem)


def _is_loaded(path: str) -> bool:
    file = PurePosixPath(path)
    return file.suffix.lower() != ".md" and not any(part.startswith(".") for part in file.parts)


def _there(folder: Path, record: Optimization) -> set[str]:
    place = folder / record.original
    try:
        names = set(files_in(place))
    except (OSError, MissingShardError) as exc:
        raise _unloadable(folder, record, str(exc)) from None
    if place.is_file():
        return {record.original}
    return set(filter(_is_loaded, (PurePosixPath(record.original, name).as_posix() for name in names)))


def _hashes(folder: Path, record: Optimization, paths: Iterable[str]) -> dict[str, str]:
    try:
        return read_all({path: folder / path for path in paths}, sha256_of)
    except OSError as exc:
        raise _unloadable(folder, record, str(exc)) from None


def _unloadable(folder: Path, record: Optimization, why: str) -> NotOptimizedError:
    return NotOptimizedError(str(folder), f"the original cannot be loaded from {record.original} ({why})")
