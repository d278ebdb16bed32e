"""Child processes: how they end, what they leave behind, and what is told of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from processes.running import ends

from safe_dtype.processes.child import how_it_ended, last_error, run, with_our_packages

SLEEPS = "import time; time.sleep(600)"
STARTS_ANOTHER = (
    f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', '{SLEEPS}']).pid, flush=True);"
)


def ended(code: str, log: Path, *, seconds: float | None = None) -> int | None:
    """Run Python code in a child, and return how it ended."""
    end = None if seconds is None else time.monotonic() + seconds
    return run([sys.executable, "-c", code], log=log, end=end, environment=os.environ)


def test_status(tmp_path: Path) -> None:
    """A child that ends by itself gives its status, with what it wrote after what the log had."""
    log = tmp_path / "log"
    log.write_text("before\n")
    assert ended("import sys; print('out'); sys.exit(3)", log) == 3
    assert log.read_text() == "before\nout\n"
    assert how_it_ended(3, 1.0) == "ended with status 3"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_signal(tmp_path: Path) -> None:
    """A child that aborts gives the signal, and memory is named where the system killed it."""
    status = ended("import os; os.abort()", tmp_path / "log")
    assert status is not None
    assert how_it_ended(status, 1.0) == "ended by SIGABRT"
    assert how_it_ended(-9, 1.0).startswith("ended by SIGKILL, as the system does when memory is short")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no process group to end")
@pytest.mark.parametrize(("rest", "status"), [(SLEEPS, None), ("import os; os.abort()", -6)], ids=["hang", "crash"])
def test_nothing_is_left(rest: str, status: int | None, tmp_path: Path) -> None:
    """What a child started is gone with it, whether it is stopped at its limit or dies before."""
    assert ended(STARTS_ANOTHER + rest, tmp_path / "log", seconds=5) == status
    grandchild = int((tmp_path / "log").read_text().split()[0])
    assert ends(grandchild)


def test_same_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child imports from where this process imports, and from where its own children were told to."""
    for folder, module in (("imported", "one_module"), ("told", "other_module")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{module}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "imported"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "told"))
    code = "import one_module, other_module, safe_dtype; print(safe_dtype.__file__)"
    assert run([sys.executable, "-c", code], log=tmp_path / "log", end=None, environment=with_our_packages()) == 0
    import safe_dtype

    assert (tmp_path / "log").read_text().strip() == safe_dtype.__file__


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Traceback\n  File x\nValueError: no such model\n\n", "ValueError: no such model"),
        ("ERROR: Could not find a version\nERROR: No matching distribution\nWARNING: old", "No matching distribution"),
        ("a.b.CustomError: why: because\nat the end", "a.b.CustomError: why: because"),
        ("Killed\n", "Killed"),
        ("", "it wrote nothing"),
    ],
)
def test_last_error(text: str, error: str, tmp_path: Path) -> None:
    """Of a log that Python or pip wrote, the last line that names an error is quoted."""
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == error
