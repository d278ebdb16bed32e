"""Give memory that nobody uses back to the system, so that what is free there is what this process may still take."""

from __future__ import annotations

import ctypes
import sys


def give_back_free_heap() -> None:
    """Have the heap of C give back whole pages that are free in it.

    glibc keeps hundreds of MiB in its heap between two steps of training, and tens between two weights in another layout; what
    comes next takes them from there: to the system they are in use. Elsewhere than on Linux with glibc nothing is given back.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
