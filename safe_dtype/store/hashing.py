"""Hashes of large files: in blocks, several files at a time, with progress. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes read so far, bytes in all; called by one thread at a time
Tell = Callable[[int], None]  # hears the length of every block that was read

_BLOCK = 2**20  # bytes read at once
_READERS = 8  # more than that do not read faster, not even from NVMe


def read_all(
    files: Mapping[str, Path], digest: Callable[[Path, Tell], T], *, progress: Progress | None = None
) -> dict[str, T]:
    """Return what `digest` makes of every file, by name. It is called by several threads.

    Raises:
        OSError: If a file cannot be read.
    """
    total = sum(file.stat().st_size for file in files.values())
    lock, done = Lock(), 0

    def tell(length: int) -> None:
        nonlocal done
        with lock:
            done += length
            if progress is not None:
                progress(done, total)

    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(lambda file: digest(file, tell), files.values()), strict=True))


def blocks_of(file: Path, tell: Tell | None = None) -> Iterator[bytes]:
    """Yield a file in blocks; no file is held in memory."""
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            yield block
            if tell is not None:
                tell(len(block))


def sha256_of(file: Path, tell: Tell | None = None) -> str:
    """Return the SHA-256 of `file` in hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks_of(file, tell):
        digest.update(block)
    return digest.hexdigest()
