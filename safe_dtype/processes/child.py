"""Child processes for work that may crash, hang or take all memory. Imports no torch."""

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
from typing import Any

from .watched import start

LAST_WORDS = 300  # characters of a dead child's log that go into the reason
LAST_ERROR = 600


def status_of(
    module: str, order: Path, *, log: Path, end: float, settings: Mapping[str, str] = MappingProxyType({})
) -> int | None:
    """Run `python -m module order` with this process' packages, and return as `run` does.

    `settings` are added to its environment.
    """
    environment = with_our_packages() | dict(settings)
    return run([sys.executable, "-m", module, str(order)], log=log, end=end, environment=environment)


def with_our_packages() -> dict[str, str]:
    """Return this process' environment, in which a Python imports the same packages, safe_dtype first of all."""
    paths = [*(str(Path(entry).resolve()) for entry in sys.path), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: Sequence[str], *, log: Path, end: float | None, environment: Mapping[str, str]) -> int | None:
    """Run a command, all its output appended to `log`, and return its exit status.

    None where it was stopped at `end`, a moment of `time.monotonic`; below zero the signal that ended it. Whatever it
    started itself is gone as well when this returns, or when this process ends before. With None for `end` it may take as long as it needs.
    """
    with log.open("ab") as writes:
        child = start(command, stdin=subprocess.DEVNULL, stdout=writes, stderr=writes, env=environment)
        try:
            return child.wait(None if end is None else max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            stop(child)


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


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, as Python and pip write them; else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [
        line for line in lines if line.startswith("ERROR: ") or line.partition(":")[0].endswith(("Error", "Exit"))
    ]
    return (errors or lines or ["it wrote nothing"])[-1].removeprefix("ERROR: ")[:LAST_ERROR]


def stop(child: subprocess.Popen[Any]) -> None:
    """End a child that leads a session of its own, and all that it started, also where it is itself gone.

    A compiler may outlive the crash of the process that started it.
    """
    if sys.platform == "win32":
        child.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that is gone
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
