"""The project's own tests that need a GPU, run by pytest on this one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from .place import Place, Row

ROOT = Path(__file__).resolve().parents[2]


def rows(place: Place) -> Iterator[Row]:
    """Yield the counts, then each test that failed with its message."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *_selected(place),
        ]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        duration = time.perf_counter() - started
        cases = [*ElementTree.parse(report).getroot().iter("testcase")] if report.exists() else []
    counts = {what: sum(case.find(what) is not None for case in cases) for what in ("failure", "error", "skipped")}
    yield {
        "command": " ".join(["python", *command[1:6], *_selected(place)]), "exit_status": done.returncode,
        "passed": len(cases) - sum(counts.values()), **counts, "seconds": duration,
    }  # fmt: skip
    if not cases:
        yield {"output": (done.stdout + done.stderr)[-2000:]}
    for case in cases:
        for problem in (*case.iter("failure"), *case.iter("error")):
            test = f"{case.get('classname')}::{case.get('name')}"
            yield {"test": test, "message": (problem.get("message") or "")[:500]}


def _selected(place: Place) -> list[str]:
    """Return what selects the tests of this device; elsewhere one file that needs none, so that the lines run."""
    return ["-m", "needs", "-k", "needs_cuda", "--must-have", "cuda"] if place.is_cuda else ["tests/test_pairwise.py"]
