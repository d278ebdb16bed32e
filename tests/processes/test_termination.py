"""SIGTERM and SIGHUP end a process as Ctrl-C does: in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from safe_dtype.processes.termination import tidy_termination

WORKS = """
import signal, sys, time
from pathlib import Path
from safe_dtype.processes.termination import tidy_termination
from safe_dtype.store.temporary import temporary_folder
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started under
{before}
with tidy_termination(), temporary_folder(".work-", beside=Path(sys.argv[1])):
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        {cleanup}
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def told(folder: Path, *numbers: int, before: str = "", cleanup: str = "pass") -> int:
    """Start work in `folder`, send it signals, and return how it ended."""
    code = WORKS.format(before=before, cleanup=cleanup)
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number in numbers:
            process.stdout.readline()
            process.send_signal(number)
        try:
            return process.wait(60)
        finally:
            process.kill()  # else the end of the block would wait for it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_in_order(number: signal.Signals, tmp_path: Path) -> None:
    """What is open is closed, the temporary folder is gone, and the status is that of shells."""
    assert told(tmp_path, number) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_twice(tmp_path: Path) -> None:
    """Whoever does not want to wait for that sends it once more."""
    slow = "print('cleaning', flush=True); time.sleep(600)"
    assert told(tmp_path, signal.SIGTERM, signal.SIGTERM, cleanup=slow) == -signal.SIGTERM


def test_ignored_stays_ignored(tmp_path: Path) -> None:
    """Under `nohup` a terminal that closes ends nothing."""
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    slow = "print('cleaning', flush=True)"
    assert told(tmp_path, signal.SIGHUP, before=ignored + "; signal.alarm(1); ", cleanup=slow) == -signal.SIGALRM


def test_put_back() -> None:
    """Afterwards the signals mean what they meant; in another thread nothing is changed."""
    before = signal.getsignal(signal.SIGTERM)
    with tidy_termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    handlers: list[object] = []

    def elsewhere() -> None:
        with tidy_termination():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert handlers == [before]
