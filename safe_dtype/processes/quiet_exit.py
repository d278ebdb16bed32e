"""A process of several ranks ends with its own exit status, whatever gloo's threads still do."""

from __future__ import annotations

import atexit
import functools
import os
import time

SECONDS = 0.05  # two orders of magnitude more than a thread needs to let go of a tensor


@functools.cache
def exit_quietly() -> None:
    """Give gloo's threads the time to end their work, when this process exits.

    A thread of gloo that asks for Python's lock while the interpreter is being taken down is ended by Python inside of C++,
    which aborts the process ("terminate called without an active exception", status 134), and the launcher calls a job
    failed that had done all its work. Seen in 1 of 20 runs of two ranks on two busy cores with accelerate alone (Python 3.11,
    torch 2.13). Until its exit functions have run, Python still hands the lock to other threads.
    """
    atexit.register(time.sleep, SECONDS)


def exit_quietly_if_launched() -> None:
    """Call `exit_quietly` in a process that a launcher has started as one of several ranks."""
    size = os.environ.get("WORLD_SIZE", "")
    if size.isdecimal() and int(size) > 1:
        exit_quietly()
