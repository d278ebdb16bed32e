"""`safe-dtype`, run in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest

from safe_dtype.cli import main


class Done(NamedTuple):
    """What a run of the command left."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command in this process, where torch is imported already."""

    def in_this_process(*arguments: object) -> Done:
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it; put it back afterwards
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return in_this_process


def run_apart(*arguments: str) -> Done:
    """Run `safe-dtype` in a process of its own."""
    command = [sys.executable, "-m", "safe_dtype", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)
