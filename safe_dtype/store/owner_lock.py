"""A lock on an open file that tells whose it is: the system frees it when its process ends, however that ends."""

from __future__ import annotations

import sys
from contextlib import suppress


def try_lock(file: int) -> bool:
    """Lock an open file, by its descriptor, until it is closed; False where another process has it locked.

    False as well where the system or the disk has no such locks: nothing is known of a file there.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
