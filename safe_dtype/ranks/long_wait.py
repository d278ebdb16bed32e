"""A long wait for ranks that may never come, as where the variables of another job are left over: it says so."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SECONDS_IN_SILENCE = 5.0
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_said: list[int] = []  # the process that has said it: once is enough


@contextmanager
def long_wait(seconds: float) -> Iterator[None]:
    """Say what this rank waits for, and how to end that, where the block takes longer than some seconds. Once a process.

    Args:
        seconds: That the block waits at most.
    """
    timer = threading.Timer(SECONDS_IN_SILENCE, _say, (seconds,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(seconds: float) -> None:
    if os.getpid() in _said:
        return
    _said.append(os.getpid())
    variables = ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ)
    logger.warning(
        "waiting for the other ranks, up to %.3g s: by the variables %s this process is one of several. "
        "Next: where they are left over from another job, stop it (Ctrl-C) and unset WORLD_SIZE.",
        seconds, variables,
    )  # fmt: skip
