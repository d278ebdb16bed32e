"""Whether processes run, and waiting for what they do: the system takes a moment to end what it was told to."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait until something is true, at most so long; return whether it is."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def runs(process: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends(process: int) -> bool:
    """Whether a process is gone soon."""
    return wait_for(lambda: not runs(process))
