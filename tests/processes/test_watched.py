"""What a process started ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes.running import runs, wait_for

from safe_dtype.processes.watched import start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no process group to end")

SLEEPS = "import time; time.sleep(600)"
# The worker starts a compiler, say, and neither is easy to end.
WORKER = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
compiler = subprocess.Popen([sys.executable, "-c", {SLEEPS!r}])
with open("pids.part", "w") as file:
    print(os.getpid(), os.getppid(), compiler.pid, file=file)
os.replace("pids.part", "pids")
time.sleep(600)
"""
PARENT = f"""
import os, signal, sys, threading, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started under
from pathlib import Path
from safe_dtype.processes.child import run

def fork():  # as a loader of data does: the fork has what is open then
    while not os.path.exists("pids"):
        time.sleep(0.02)
    if os.fork() == 0:
        time.sleep(600)
    Path("forked").touch()

threading.Thread(target=fork, daemon=True).start()
run([sys.executable, "-c", {WORKER!r}], log=Path("log"), end=None, environment=os.environ)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_killed_parent(number: signal.Signals, tmp_path: Path) -> None:
    """A parent that is killed leaves nothing running: not the child, not its watchdog, not what the child started.

    That holds also where a process lives on that it forked meanwhile.
    """
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=tmp_path, start_new_session=True)
    try:
        assert wait_for((tmp_path / "forked").exists)
        started = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(map(runs, started))
        parent.send_signal(number)
        assert parent.wait(20) == -number
        assert wait_for(lambda: not any(map(runs, started)))
    finally:
        os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV),
    ],
)
def test_ends_as_the_command(code: str, status: int, tmp_path: Path) -> None:
    """The watchdog ends as the command did, with its status or by its signal."""
    assert start([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL).wait(60) == status


def test_streams() -> None:
    """The command reads and writes as if nobody stood between, and gets no file of the watchdog's."""
    code = "import os, sys; print(sys.stdin.read().upper(), len(os.listdir('/dev/fd')))"
    child = start([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.communicate("words", timeout=60)[0].split() == ["WORDS", "4"]  # the fourth lists the folder


def test_no_such_command() -> None:
    """A command that does not exist ends with the status of shells, and is named."""
    child = start(["/no/such/command"], stderr=subprocess.PIPE, text=True)
    assert child.communicate(timeout=60)[1] == "/no/such/command: No such file or directory\n"
    assert child.returncode == 127
