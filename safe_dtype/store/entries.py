"""Everything that is remembered, listed and forgotten: files of the cache folder, and nothing beside them."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .remembered import cache_folder, check_entry, file_of, read_entry

_NAME = re.compile(r"[0-9a-f]{32}\.json")
_BESIDE = re.compile(r"\.?([0-9a-f]{32})\.(lock|json\.[0-9a-f]{8}\.part)")  # locks, and files that are being written
_LEFT_OVER = 3600.0  # seconds after which nobody is writing a file any more


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the cache folder, as it was when it was listed."""

    file: Path
    bytes: int
    written_at: float  # seconds since 1970, as the file system says
    values: Mapping[str, Any] = field(default_factory=dict, hash=False)  # what was remembered; empty of a damaged file
    problem: str = ""  # why it cannot be read; empty where it can
    inode: int = 0

    @property
    def key(self) -> Mapping[str, Any]:
        """What it was remembered under; empty where it cannot be read."""
        key: Mapping[str, Any] = self.values.get("key", {})
        return key

    @property
    def measured_at(self) -> float:
        """When it was measured, in seconds since 1970."""
        measured = self.values.get("measured_at")
        return measured if isinstance(measured, float) else self.written_at


def entries() -> list[Entry]:
    """Return what the cache folder holds, the newest first; damaged files too, but no files that are not ours."""
    try:
        files = [file for file in cache_folder().iterdir() if _NAME.fullmatch(file.name)]
    except OSError:  # nothing was remembered yet
        return []
    listed = (entry for file in files if (entry := _entry(file)) is not None)
    return sorted(listed, key=lambda entry: entry.measured_at, reverse=True)


def forget(chosen: Iterable[Entry]) -> list[Entry]:
    """Delete entries, and return those that are gone. One that was measured anew since it was listed stays.

    A process that reads or writes at the same time meets no half file: it measures anew, or what it writes stays. Of a
    link the link is deleted, and never what it points to.

    Raises:
        OSError: If a file cannot be deleted.
    """
    gone = []
    for entry in chosen:
        if _is_as_listed(entry):
            entry.file.unlink(missing_ok=True)
            gone.append(entry)
    _sweep()
    return gone


def _entry(file: Path) -> Entry | None:
    """Return an entry; None for what is gone by now, and for the JSON of somebody else."""
    try:
        status = file.lstat()
    except OSError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    values, problem = {}, ""
    try:
        if stat.S_ISLNK(status.st_mode):
            raise ValueError("it is a link")
        values = read_entry(file)
        if "schema" not in values:
            return None
        check_entry(values)
        if file_of(values["key"]).name != file.name:
            raise ValueError("it belongs to something else")
    except (FileNotFoundError, TypeError):  # gone, or JSON that is no table: none of ours was ever anything else
        return None
    except Exception as exc:  # noqa: BLE001  (there is no end to what can be wrong with a damaged file)
        values, problem = {}, str(exc) or type(exc).__name__
    return Entry(file, status.st_size, status.st_mtime, values, problem, status.st_ino)


def _is_as_listed(entry: Entry) -> bool:
    try:
        status = entry.file.lstat()
    except OSError:
        return False
    return (status.st_ino, status.st_mtime) == (entry.inode, entry.written_at)


def _sweep() -> None:
    """Delete locks without an entry and files that a process left half written, where nobody has touched them for long."""
    folder = cache_folder()
    for file in [*folder.iterdir()] if folder.is_dir() else []:
        name = _BESIDE.fullmatch(file.name)
        if name is None or (folder / f"{name[1]}.json").exists():
            continue
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > _LEFT_OVER:
            file.unlink(missing_ok=True)
