"""A process of our own for work that may crash, hang or eat the memory. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

LAST_WORDS = 300  # characters of a dead child's log that go into the reason


def status_of(
    module: str, order: Path, *, log: Path, end: float, settings: Mapping[str, str] = MappingProxyType({})
) -> int | None:
    """Run `python -m module order` with this process' packages, and return as `run` does.

    `settings` are added to its environment.
    """
    paths = os.pathsep.join(str(Path(one).resolve()) for one in sys.path)
    environment = os.environ | {"PYTHONPATH": paths, **settings}
    return run([sys.executable, "-m", module, str(order)], log=log, end=end, environment=environment)


def run(command: Sequence[str], *, log: Path, end: float, environment: Mapping[str, str]) -> int | None:
    """Run a command, all its output appended to `log`, and return its exit status.

    None where it was stopped at `end`, a moment of `time.monotonic`; below zero the signal that ended it. Whatever it
    started itself is gone as well when this returns.
    """
    with log.open("ab") as writes:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=writes,
            stderr=writes,
            env=environment,
            start_new_session=True,  # a group of its own, with the compilers that it starts
        )
        try:
            return child.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(child)


def how_it_ended(status: int | None, seconds: float) -> str:
    """Return in words how a child ended that did not come to its end within `seconds`; empty for a status of 0."""
    if status is None:
        return f"stopped after {seconds:.0f} s"
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}{', as the system does when memory is short' * (name == 'SIGKILL')}"
    return f"ended with status {status}" if status else ""


def last_words(log: Path) -> str:
    """Return the end of a log, in one line."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return text[-LAST_WORDS:].replace("\n", " | ")


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started, also where it is itself gone: a compiler may outlive a crash."""
    if sys.platform == "win32":
        child.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that is gone
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
