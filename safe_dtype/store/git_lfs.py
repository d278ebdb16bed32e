"""Files of which `git clone` left only a pointer, because Git LFS was not there to download them."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CorruptCheckpointError

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: the version comes first, and a pointer is below 1024 bytes.
_BEGINS = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1024


def is_pointer(path: Path) -> bool:
    """Whether there is a Git LFS pointer in the place of a file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_BEGINS)) == _BEGINS and path.stat().st_size < _LONGEST
    except OSError:
        return False


def pulled(path: Path) -> Path:
    """Return `path`.

    Raises:
        CorruptCheckpointError: If a Git LFS pointer is in its place.
    """
    if is_pointer(path):
        size = re.search(rb"^size (\d+)", path.read_bytes(), re.MULTILINE)
        missing = f"the file's {int(size[1]):,} bytes were" if size else "the file itself was"
        problem = f"is a Git LFS pointer: {missing} never downloaded"
        raise CorruptCheckpointError(str(path), problem, f"run `git lfs pull` in {path.parent}")
    return path


def require_pulled(folder: Path) -> None:
    """Check the files of a folder.

    Raises:
        CorruptCheckpointError: If one is a Git LFS pointer; the first by name.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file():
            pulled(path)
