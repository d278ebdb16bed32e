"""Which ends of ranks are worth a restart: told from facts, and by launches for real that end as such programs do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safe_dtype.integrations.accelerate.restarting_launch import RankEnd, restart_helps, status_of


@pytest.mark.parametrize(
    ("ends", "helps"),
    [
        pytest.param([RankEnd(0, 75)], True, id="a dtype has failed for good"),
        pytest.param([RankEnd(0, 76)], True, id="a rank of another machine has ended"),
        pytest.param([RankEnd(0, -9), RankEnd(1, 76)], True, id="killed"),
        pytest.param(
            [RankEnd(0, -9), RankEnd(1, 1, "RuntimeError: reset")], True, id="killed, and the other fails on it"
        ),
        pytest.param([RankEnd(0, 75), RankEnd(1, 1)], True, id="a dtype, and the other fails on it"),
        pytest.param([RankEnd(0, -11)], True, id="by a crash"),
        pytest.param([RankEnd(0, -15), RankEnd(1, -15)], True, id="by the machine"),
        pytest.param([RankEnd(0, 1, "TypeError: x"), RankEnd(1, -15)], False, id="an error"),
        pytest.param([RankEnd(0, 1), RankEnd(1, 1)], False, id="a syntax error, of which nobody left word"),
        pytest.param([RankEnd(0, 76), RankEnd(1, 1, "KeyError: x")], False, id="an error, and the other is alone"),
        pytest.param([RankEnd(0, 76), RankEnd(1, -15, "KeyError: x")], False, id="an error, and the other ends first"),
        pytest.param([RankEnd(0, 2)], False, id="a status of the program"),
        pytest.param(
            [RankEnd(0, 1, "KeyError: x", 100), RankEnd(1, -9, "", 130)], False, id="an error, and the other hangs"
        ),
    ],
)
def test_restart_helps(ends: list[RankEnd], helps: bool) -> None:
    """Another dtype, or a rank that was killed: never an error of the program, whoever ended first for it."""
    assert restart_helps(ends) is helps


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        pytest.param([RankEnd(0, 3)], 3, id="of the program"),
        pytest.param([RankEnd(0, 76), RankEnd(1, 3)], 3, id="of the program, and the other is alone"),
        pytest.param([RankEnd(0, 1, "KeyError: x"), RankEnd(1, -15)], 1, id="an error"),
        pytest.param([RankEnd(0, 4, "", 20), RankEnd(1, 3, "", 10)], 3, id="the first one"),
        pytest.param([RankEnd(0, 75), RankEnd(1, 75)], 75, id="a dtype on both"),
        pytest.param([RankEnd(0, 76), RankEnd(1, 75)], 75, id="a dtype, and the other is alone"),
        pytest.param(
            [RankEnd(0, 1, "RuntimeError: reset", 10), RankEnd(1, 75, "", 11)],
            75,
            id="a dtype, and the other fails on it",
        ),
        pytest.param([RankEnd(0, 76), RankEnd(1, -15)], 76, id="a rank of another machine has ended"),
        pytest.param([RankEnd(0, -9), RankEnd(1, -15, "KeyError: x")], None, id="killed"),
        pytest.param([RankEnd(0, 76), RankEnd(1, -9)], None, id="killed, and the other is alone"),
    ],
)
def test_status_of(ends: list[RankEnd], status: int | None) -> None:
    """What the rank ends with that tells why is what a launch ends with, after no further restart; a signal has no status."""
    assert status_of(ends) == status


PROGRAMS = {
    "syntax": "print('begun', flush=True)\ndef f(:\n",
    "error": "print('begun', flush=True)\nimport torch.distributed\nlen(5)\n",
    "alone": """
import os, sys, torch, torch.distributed as dist
print("begun", flush=True)
dist.init_process_group("gloo")
if dist.get_rank() == 0:
    raise KeyError("labels")
dist.all_reduce(torch.ones(1))
""",
    "exit": """
import atexit, os, sys, time, torch, torch.distributed as dist
print("begun", flush=True)
dist.init_process_group("gloo")
if dist.get_rank() == 1:
    atexit.register(time.sleep, 2)  # as long as Python may take to end, its connections closed
    atexit.register(dist.destroy_process_group)
    sys.exit(3)
dist.all_reduce(torch.ones(1))
""",
    "killed": """
import os, pathlib, signal, sys, time
print("begun", flush=True)
attempt, rank = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]
pathlib.Path(f"begun {attempt} {rank}").touch()
while not pathlib.Path(f"begun {attempt} 0").exists():
    time.sleep(0.01)
if (attempt, rank) == ("0", "1"):
    os.kill(os.getpid(), signal.SIGKILL)
if attempt == "1":
    time.sleep(0.5 * int(rank))  # who misses another one ends before that one is gone
    sys.exit(3 if rank == "1" else 76)
""",
}
BEGUN = {"syntax": 0, "error": 2, "alone": 2, "exit": 2, "killed": 4}
STATUS = {"exit": 3, "killed": 3}  # of the launch; else 1


def launched(folder: Path, *arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Return how a launch of two processes on the CPU has ended."""
    command = [sys.executable, "-m", "safe_dtype", "launch", "--cpu", "--num_processes", str(processes), *arguments]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    "program", [pytest.param(name, marks=[pytest.mark.slow] * (name != "killed")) for name in PROGRAMS]
)
def test_launch(program: str, tmp_path: Path) -> None:
    """Who was killed comes again; an error or a status of the program ends the job the first time, with a line that says so."""
    (tmp_path / "train.py").write_text(PROGRAMS[program])
    done = launched(tmp_path, "train.py")
    assert done.stdout.count("begun") == BEGUN[program], done.stderr[-4000:]
    assert done.returncode == STATUS.get(program, 1)
    assert done.stderr.count("nothing is started again") == 1
    if program == "alone":
        assert "rank 0 has ended with KeyError: 'labels', which is none of a dtype" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("status", [75, 76])
def test_start_again(status: int, processes: int, tmp_path: Path) -> None:
    """A launch whose restarts are used up ends with the status that asks for one more, of one process and of two."""
    (tmp_path / "train.py").write_text(f"print('begun', flush=True)\nraise SystemExit({status})")
    done = launched(tmp_path, "--max_restarts", "1", "train.py", processes=processes)
    assert done.returncode == status, done.stderr[-4000:]
    assert done.stdout.count("begun") >= (1 if processes == 1 else 2)
    assert "nothing is started again" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--quiet",), ("--max_restarts", "0")], ids=" ".join)
def test_the_only_process(options: tuple[str, ...], tmp_path: Path) -> None:
    """A launch of one process ends with its status too, and with --quiet without a traceback of the launcher."""
    (tmp_path / "train.py").write_text("raise SystemExit(3)")
    done = launched(tmp_path, *options, "train.py", processes=1)
    assert done.returncode == 3
    assert ("Traceback" in done.stderr) == (options != ("--quiet",))


def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    """It is refused before any process starts, as one line; so is a module."""
    done = launched(tmp_path, "trian.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "trian.py is not there, in " in done.stderr
    assert "Next: name the script after all options" in done.stderr
