"""What is remembered across processes: one JSON file for each key, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .files import write_whole

logger = logging.getLogger(__name__)

_SCHEMA = 1
_WAIT = 60.0  # seconds for another process that measures the same

Key = Mapping[str, Any]
T = TypeVar("T")


def cache_folder() -> Path:
    """Return where values are remembered: SAFE_DTYPE_CACHE, else the user's cache folder."""
    asked = os.environ.get("SAFE_DTYPE_CACHE")
    if asked:
        return Path(asked).expanduser()
    return _user_cache() / "safe_dtype"


def recall(key: Key, read: Callable[[Mapping[str, Any]], T]) -> T | None:
    """Return what `read` makes of the values remembered under `key`; None where there are none that can be read."""
    file = _file(key)
    try:
        entry = json.loads(file.read_text("utf-8"))
        if entry["schema"] != _SCHEMA or entry["key"] != json.loads(json.dumps(key)):
            raise ValueError("it belongs to something else")
        return read(entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as exc:
        logger.warning("%s cannot be read (%s: %s): measuring again", file, type(exc).__name__, exc)
        return None


def remember(key: Key, values: Mapping[str, Any]) -> None:
    """Write `values` under `key`, atomically; where that is not possible, log it and go on."""
    entry = {"schema": _SCHEMA, "key": key, "measured_at": time.time(), **values}
    file = _file(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(entry))
    except OSError as exc:
        logger.warning("%s cannot be written (%s): the next process measures again", file, exc)


@contextmanager
def one_process_at_a_time(key: Key) -> Iterator[None]:
    """Let one process measure while the others wait: at the same time they would only measure each other."""
    from filelock import FileLock, Timeout  # slow to import, and only needed where something is measured

    file = _file(key).with_suffix(".lock")
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


def _file(key: Key) -> Path:
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
