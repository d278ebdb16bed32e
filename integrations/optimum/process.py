"""Run another Python to its end or to a time limit, its words kept. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from safe_dtype.processes.child import run

# Of this process' Python: another one would take its packages from here instead of from its own folder.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def run_python(python: Path, *arguments: str, log: Path, end: float) -> int | None:
    """Run `python` isolated from this process' packages, all it says appended to `log`; return its exit status.

    None where it was stopped at `end`, a moment of `time.monotonic`; below zero the signal that ended it. The rest of
    the environment is the user's: so pip asks where the user's pip asks.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    return run([str(python), "-I", *arguments], log=log, end=end, environment=environment)


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, as Python and pip write them; else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [
        line for line in lines if line.startswith("ERROR: ") or line.partition(":")[0].endswith(("Error", "Exit"))
    ]
    return (named or lines or ["it said nothing"])[-1].removeprefix("ERROR: ")[:600]
