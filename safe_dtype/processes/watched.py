"""Start a child process that does not outlive this one, however this one ends."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_WATCHDOG = str(Path(__file__).with_name("watchdog.py"))

_lifelines: set[int] = set()  # pipes that nobody writes to: they end with this process


def start(command: Sequence[str], **how: Any) -> subprocess.Popen[Any]:
    """Start `command` in a session of its own; `how` are further arguments of `subprocess.Popen`.

    Where this process ends, by SIGKILL as well, the system ends the command and whatever it started at once. That holds
    on POSIX; Windows has no such groups, and the command may go on there. A command that does not exist ends with
    status 127.
    """
    if sys.platform == "win32":
        return subprocess.Popen(command, **how)
    reads, writes = os.pipe()
    _lifelines.add(writes)
    try:
        watched = [sys.executable, "-I", "-S", _WATCHDOG, str(reads), *command]
        child = subprocess.Popen(watched, start_new_session=True, pass_fds=(reads,), **how)
    except BaseException:
        _let_go(writes)
        raise
    finally:
        os.close(reads)
    weakref.finalize(child, _let_go, writes)
    return child


def _let_go(lifeline: int) -> None:
    if lifeline in _lifelines:
        _lifelines.discard(lifeline)
        with suppress(OSError):
            os.close(lifeline)


def _let_go_of_all() -> None:
    """A forked process, such as a worker that loads data, may live on when this one is killed."""
    for lifeline in list(_lifelines):
        _let_go(lifeline)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_all)
