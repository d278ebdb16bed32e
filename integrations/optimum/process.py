"""Run another Python to its end or to a time limit, its words kept. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# Of this process' Python: another one would take its packages from here instead of from its own folder.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def run_python(python: Path, *arguments: str, log: Path, end: float) -> int | None:
    """Run `python` isolated from this process' packages, all it says appended to `log`; return its exit status.

    None where it was stopped at `end`, a moment of `time.monotonic`; below zero the signal that ended it. The rest of
    the environment is the user's: so pip asks where the user's pip asks.
    """
    with log.open("ab") as writes:
        child = subprocess.Popen(
            [str(python), "-I", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=writes,
            stderr=writes,
            env={name: value for name, value in os.environ.items() if name not in _OURS},
            start_new_session=True,  # a group of its own, with what pip starts to build a package
        )
        try:
            return child.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(child)


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, as Python and pip write them; else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [
        line for line in lines if line.startswith("ERROR: ") or line.partition(":")[0].endswith(("Error", "Exit"))
    ]
    return (named or lines or ["it said nothing"])[-1].removeprefix("ERROR: ")[:600]


def _stop(child: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        child.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that is gone
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
