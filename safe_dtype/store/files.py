"""A file written whole or not at all."""

from __future__ import annotations

import glob
import secrets
import time
from contextlib import suppress
from pathlib import Path

from .owner_lock import try_lock

_TOKEN_BYTES = 4
_TOKEN_PATTERN = "[0-9a-f]" * 2 * _TOKEN_BYTES  # no other name: a user's own file may end in .part as well
_YOUNG = 60.0  # seconds: its process may not have locked it yet


def write_whole(file: Path, text: str) -> None:
    """Write `text` in UTF-8 to a new file beside `file`, then rename it: readers see the old one or the new one whole.

    Many processes and threads may write the same file at once: the last one wins. The text is not forced to the disk.
    What a process that was killed left beside it is deleted by the next one.

    Raises:
        OSError: If it cannot be written. What was there before is still there then, and nothing is beside it.
    """
    _remove_left_behind(file)
    beside = file.with_name(f".{file.name}.{secrets.token_hex(_TOKEN_BYTES)}.part")
    try:
        with beside.open("x", encoding="utf-8") as out:
            try_lock(out.fileno())
            out.write(text)
        beside.replace(file)  # atomic on every platform
    except BaseException:  # a signal that ends the process as well
        with suppress(OSError):
            beside.unlink()
        raise


def _remove_left_behind(file: Path) -> None:
    for part in file.parent.glob(f".{glob.escape(file.name)}.{_TOKEN_PATTERN}.part"):
        with suppress(OSError), part.open("rb") as left:
            if time.time() - part.stat().st_mtime > _YOUNG and try_lock(left.fileno()):
                part.unlink()
