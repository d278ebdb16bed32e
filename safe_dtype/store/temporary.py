"""Temporary folders that the next run deletes where their process was killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .owner_lock import try_lock

_OWNER = ".safe_dtype-owner"  # in each folder, and locked for as long as its process lives
_PREFIXES = (".", "safe_dtype-")  # hidden beside the user's own, named in the system's folder
_CONTENT = "files"


class TemporaryPlace:
    """A new folder of this process' own, deleted with `remove`, else by the next process that makes one beside it.

    Where the system or the disk has no locks nobody can tell whose a folder is, and only `remove` deletes it.
    """

    def __init__(self, prefix: str, *, beside: Path | None = None) -> None:
        """Make it in `beside`, by default the system's folder for what is temporary.

        `prefix` begins with "." or "safe_dtype-".

        Raises:
            OSError: If it cannot be made.
        """
        parent = Path(tempfile.gettempdir()) if beside is None else beside
        remove_left_behind(parent)
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._lock = _locked(self._folder)
        self.path = self._folder / _CONTENT
        self.path.mkdir()

    def remove(self) -> None:
        """Delete it with all that is in it."""
        _remove(self._folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def temporary_folder(prefix: str, *, beside: Path | None = None) -> Iterator[Path]:
    """Yield the path of a new `TemporaryPlace`, which is deleted at the end."""
    place = TemporaryPlace(prefix, beside=beside)
    try:
        yield place.path
    finally:
        place.remove()


def remove_left_behind(parent: Path) -> None:
    """Delete the temporary folders in `parent` whose processes are gone, and nothing else."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIXES) and entry.is_dir(follow_symlinks=False):
                _remove_if_left(Path(entry.path))


def _remove_if_left(folder: Path) -> None:
    with suppress(OSError):  # no folder of ours, or deleted by another process at this moment
        lock = os.open(folder / _OWNER, os.O_RDWR)
        try:
            if _is_mine(lock) and try_lock(lock):
                _remove(folder)
        finally:
            os.close(lock)


def _is_mine(file: int) -> bool:
    return not hasattr(os, "getuid") or os.fstat(file).st_uid == os.getuid()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder / _CONTENT, ignore_errors=True)  # first: who is killed here leaves it marked
    shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> int | None:
    """Mark a folder as this process' own, and return what holds the lock; None where there are no locks."""
    new = folder / f"{_OWNER}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if not try_lock(lock):
        os.close(lock)
        new.unlink()
        return None
    new.rename(folder / _OWNER)  # other processes see it when it is locked
    return lock
