"""A file written whole or not at all."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write `text` in UTF-8 to a new file beside `file`, then rename it: readers see the old one or the new one whole.

    Many processes and threads may write the same file at once: the last one wins. The text is not forced to the disk.

    Raises:
        OSError: If it cannot be written. What was there before is still there then, and nothing is beside it.
    """
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("x", encoding="utf-8") as out:
            out.write(text)
        beside.replace(file)  # atomic on every platform
    except (OSError, UnicodeError):
        with suppress(OSError):
            beside.unlink()
        raise
