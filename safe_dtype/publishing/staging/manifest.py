"""What a staged folder holds: every file of it, by size and hashes. Imports no client."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ...errors import NotPublishableError
from ...hub.remote_files import FileDigest, Manifest, Progress
from ...store.hashing import Tell, blocks_of, read_all
from ..release import State

# What every file system, URL and git can spell. Spaces only inside: Windows drops them at the end.
_PART = re.compile(r"(?! )[A-Za-z0-9 ._+=@,~#%()\[\]{}&!$'^-]+(?<! )")
_RESERVED = frozenset({".", "..", ".git"})


def manifest_of(folder: Path, *, progress: Progress | None = None) -> Manifest:
    """Return the digest of every file in `folder`, hidden ones too: nothing is left out.

    Files are read in blocks, several at a time. Links to files inside of the folder count as files.

    Raises:
        NotPublishableError: If the folder is missing or empty, holds a link that leaves it, a link to a folder,
            something that is no file, a name that not every system can spell, two names that differ in case only,
            or a file that cannot be read or grows while it is read.
    """
    if not folder.is_dir():
        raise _refused(folder, "there is no such folder", "stage one with `safe-dtype publish stage`")
    files = dict(sorted(_walk(folder.resolve(), "")))
    if not files:
        raise _refused(folder, "the folder is empty", "stage one with `safe-dtype publish stage`")
    _refuse_twins(folder, files)
    try:
        return _digests(folder, files, progress)
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise _refused(folder, f"{exc.filename or 'a file'} cannot be read ({reason})", "make it readable") from exc


def _digests(folder: Path, files: dict[str, Path], progress: Progress | None) -> Manifest:
    tell = None if progress is None else partial(progress, "hash")
    hashed = read_all(files, _digest, progress=tell)
    digests = {name: digest for name, digest in hashed.items() if digest is not None}
    if changing := hashed.keys() - digests.keys():
        raise _refused(folder, f"{min(changing)} changes while it is read", "wait until nothing writes to the folder")
    return digests


def _digest(file: Path, tell: Tell) -> FileDigest | None:
    """Hash one file in one pass; None where its length is not what was found before."""
    size, read = file.stat().st_size, 0
    # git hashes a header with the length first.
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for block in blocks_of(file, tell):
        sha256.update(block)
        git.update(block)
        read += len(block)
    return FileDigest(size, sha256.hexdigest(), git.hexdigest()) if read == size else None


def _walk(folder: Path, below: str) -> Iterator[tuple[str, Path]]:
    """Give every file below `folder` with its path in the repository."""
    root = folder
    for entry in sorted((folder / below).iterdir()):
        name = f"{below}{entry.name}"
        if not _PART.fullmatch(entry.name) or entry.name.lower() in _RESERVED or len(name) > 250:
            allowed = "letters, digits and the usual signs of ASCII"
            raise _refused(root, f"{name!r} is a name that not every system can spell", f"rename it with {allowed}")
        if entry.is_symlink() and not entry.resolve().is_relative_to(root):
            raise _refused(root, f"{name} is a link that leaves the folder", "put the file itself in its place")
        if not entry.exists():
            raise _refused(root, f"{name} is a link that leads nowhere", "put the file itself in its place")
        if entry.is_dir():
            if entry.is_symlink():
                raise _refused(root, f"{name} is a link to a folder", "put the folder itself in its place")
            yield from _walk(root, f"{name}/")
        elif stat.S_ISREG(entry.stat().st_mode):
            yield name, entry
        else:
            raise _refused(root, f"{name} is no regular file", "remove it")


def _refuse_twins(folder: Path, files: dict[str, Path]) -> None:
    seen: dict[str, str] = {}
    for name in files:
        if (twin := seen.setdefault(name.lower(), name)) != name:
            raise _refused(folder, f"{twin} and {name} are one file to Windows and macOS", "rename one of them")


def _refused(folder: Path, happened: str, advice: str) -> NotPublishableError:
    return NotPublishableError(str(State.NOT_STARTED), str(folder), happened, "nothing of this folder", advice)
