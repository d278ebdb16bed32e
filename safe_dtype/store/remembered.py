"""What is remembered across processes: one JSON file for each key, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .files import write_whole
from .json_text import parse_json
from .typed import well_typed

logger = logging.getLogger(__name__)

_SCHEMA = 1
_WAIT = 60.0  # seconds for another process that measures the same
_LARGEST = 2**26  # bytes; what is remembered has some thousands
_UNWRITABLE: set[Path] = set()  # folders of which it was said that they cannot be written

Key = Mapping[str, Any]
T = TypeVar("T")


def cache_folder() -> Path:
    """Return where values are remembered: SAFE_DTYPE_CACHE, else the user's cache folder."""
    asked = os.environ.get("SAFE_DTYPE_CACHE")
    if asked:
        return Path(os.path.expanduser(asked))  # noqa: PTH111  # pathlib raises over a user who is not there
    return _user_cache() / "safe_dtype"


def recall(key: Key, read: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Return what `read` makes of the values remembered under `key`; None where there are none that can be read.

    Whatever is in the place of the file, nothing is raised: what has changed since it was written, what `read` cannot
    read, and a dataclass of `read` whose fields are not of their types are all as good as none.
    """
    file = file_of(key)
    try:
        entry = read_entry(file)
        if entry["schema"] != _SCHEMA or entry["key"] != json.loads(json.dumps(key)):
            raise ValueError("it belongs to something else")
        check_entry(entry)
        return well_typed(read(entry))
    except (FileNotFoundError, NotADirectoryError):  # no file, or a file in the place of the folder
        return None
    except Exception as exc:  # noqa: BLE001  (there is no end to what can be wrong with a damaged file)
        logger.warning("%s cannot be read (%s: %s): measuring again", file, type(exc).__name__, exc)
        return None


def remember(key: Key, values: Mapping[str, Any]) -> None:
    """Write `values` under `key`, atomically; where that is not possible, log it once for each folder and go on."""
    entry = {"schema": _SCHEMA, "key": key, "measured_at": time.time(), **values}
    file = file_of(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({**entry, "digest": _digest(entry)}))
    except OSError as exc:
        if file.parent not in _UNWRITABLE:
            _UNWRITABLE.add(file.parent)
            logger.warning(
                "the cache folder %s cannot be written (%s): nothing is remembered, and the next process measures again. "
                "SAFE_DTYPE_CACHE names another one",
                file.parent,
                exc,
            )


def check_entry(entry: Mapping[str, Any]) -> None:
    """Raise where an entry is not what was written.

    Raises:
        ValueError: If it is of another schema, or was changed.
        KeyError: If it lacks what every entry has.
    """
    if entry["schema"] != _SCHEMA or not isinstance(entry["key"], dict):
        raise ValueError("it belongs to something else")
    if entry.get("digest", "") not in ("", _digest(entry)):
        raise ValueError("it was changed after it was written")


def read_entry(file: Path) -> dict[str, Any]:
    """Return what a file holds, whatever that is.

    Raises:
        OSError, ValueError, TypeError: If it cannot be read, or holds no table.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise ValueError("it is no file")
    if status.st_size > _LARGEST:
        raise ValueError(f"it has {status.st_size:,} bytes")
    entry = parse_json(file.read_text("utf-8"))
    if not isinstance(entry, dict):
        raise TypeError("it is no table")
    return entry


def _digest(entry: Mapping[str, Any]) -> str:
    """Return a digest of what was remembered, whenever that was."""
    plain = {name: value for name, value in entry.items() if name not in ("digest", "measured_at")}
    # Through JSON once, which makes lists of tuples and texts of keys that are numbers.
    text = json.dumps(json.loads(json.dumps(plain)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def one_process_at_a_time(key: Key) -> Iterator[None]:
    """Let one process measure while the others wait: at the same time they would only measure each other."""
    from filelock import FileLock, Timeout  # slow to import, and only needed where something is measured

    file = file_of(key).with_suffix(".lock")
    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_WAIT)
    except (OSError, NotImplementedError, Timeout) as exc:  # a folder that cannot be written, a disk without locks
        logger.info("no lock on %s (%s): measuring anyway", file, exc)
    try:
        yield
    finally:
        lock.release()


def file_of(key: Key) -> Path:
    """Return the file for `key`, whether it is there or not."""
    text = json.dumps([_SCHEMA, key], sort_keys=True)
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _user_cache() -> Path:
    asked = os.environ.get("XDG_CACHE_HOME")
    if asked:
        return Path(asked)
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(tempfile.gettempdir())
    if platform.system() == "Darwin":
        return home / "Library" / "Caches"
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    return home / ".cache"
