"""Several processes as the ranks of one job: a function on each, its values back, and no test that hangs.

    def gives_its_rank() -> int:
        return torch.distributed.get_rank()

    assert run_ranks(gives_its_rank, 2) == [0, 1]

A launch costs a second or more: put many cases into one function, each after `begin_case(name)`. Where a rank fails or
waits too long, every rank prints the stacks of its threads, all are killed with what they started, and the test fails
with all of that.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forked import PROCESSES

TESTS = Path(__file__).resolve().parent.parent

# Makes a newer CPU calculate as one without AVX-512 and AMX: for `Launch.environments`.
OLDER_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

# What libraries read once, while torch is imported: a rank with such a setting begins with a fresh interpreter.
_READ_ON_IMPORT = ("ATEN_", "DNNL_", "ONEDNN_", "MKL_", "OMP_", "LD_", "PYTHON")
_TAIL = 20_000  # characters of each rank's output that a failure shows


@dataclass(frozen=True)
class Launch:
    """How ranks are started, and how long they may take.

    Attributes:
        seconds: The limit for all of it.
        patience: Seconds that the others have left once a rank has failed.
        environments: Settings of single ranks, by rank; `None` as the key: of all.
        joins: Whether a gloo group of all ranks is there when the function begins. The variables for `init_process_group`
            and for accelerate are set in any case.
        group_seconds: The timeout of that group.
    """

    seconds: float = 60.0
    patience: float = 10.0
    environments: Mapping[int | None, Mapping[str, str]] = field(default_factory=dict)
    joins: bool = True
    group_seconds: float = 30.0


@dataclass(frozen=True)
class Outcome:
    """How one rank ended.

    Attributes:
        status: Its exit status, negative for a signal; None where it had to be killed.
        value: What the function returned.
        error: The traceback of what it raised, else None.
        output: All that it printed, the stacks of its threads included.
    """

    rank: int
    status: int | None
    value: Any
    error: str | None
    output: str

    def __str__(self) -> str:
        ended = "was killed at the limit" if self.status is None else f"ended with status {self.status}"
        return f"--- rank {self.rank} {ended}\n{self.output[-_TAIL:]}{self.error or ''}"


def run_ranks(
    function: Callable[..., Any] | Path, size: int, *arguments: Any, launch: Launch | None = None
) -> list[Any]:
    """Return what `function(*arguments)` returned on each of `size` ranks, in their order.

    `function`: one of a module in tests/, with arguments and values that can be pickled; or a script.

    Raises:
        AssertionError: If a rank raised, was killed, or did not end in time; with the output and the stacks of all.
    """
    outcomes = outcomes_of(function, size, *arguments, launch=launch)
    if any(outcome.status != 0 or outcome.error for outcome in outcomes):
        raise AssertionError("\n".join(["Not all ranks ended well.", *map(str, outcomes)]))
    return [outcome.value for outcome in outcomes]


def outcomes_of(
    function: Callable[..., Any] | Path, size: int, *arguments: Any, launch: Launch | None = None
) -> list[Outcome]:
    """Return how each of `size` ranks ended, well or not: for tests in which a rank is to die."""
    launch = launch or Launch()
    with tempfile.TemporaryDirectory(prefix="safe_dtype_ranks_") as name:
        folder = Path(name)
        call = {"function": _address(function), "arguments": arguments, "launch": launch}
        (folder / "call").write_bytes(pickle.dumps(call))
        port = str(free_port())
        ranks = [_Rank(rank, folder, _environment(rank, size, port, launch), launch) for rank in range(size)]
        try:
            _wait(ranks, launch)
        finally:
            for rank in ranks:
                rank.kill()
        return [rank.outcome() for rank in ranks]


def run_program(
    arguments: Sequence[str], folder: Path, size: int, **settings: str
) -> tuple[list[dict[str, Any]], str]:
    """Return what each of `size` ranks of a program has left in `folder`, as "end RANK", and all that it has printed.

    Args:
        arguments: Of Python: what launches the program, which finds the folder in the variable JOB_FOLDER.
        folder: Empty.
        size: How many ranks there are.
        settings: Other variables.

    Raises:
        AssertionError: If it did not end well; with its output.
    """
    environment = {
        **os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "JOB_FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **settings,
    }  # fmt: skip
    job = start_launcher(arguments, environment)
    log = output_of(job)
    assert job.returncode == 0, log
    return [json.loads((folder / f"end {rank}").read_text()) for rank in range(size)], log


def start_launcher(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS`, which starts ranks itself, in the root of the repository."""
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=TESTS.parent, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def output_of(launcher: subprocess.Popen[str], seconds: float = 240.0) -> str:
    """Return all that a launcher has printed when it has ended; one that takes longer is told to end, with its ranks."""
    try:
        return launcher.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        launcher.terminate()  # it ends its ranks, which have sessions of their own
        try:
            output = launcher.communicate(timeout=45)[0]
        except subprocess.TimeoutExpired:
            launcher.kill()
            output = launcher.communicate()[0]
        return f"{output}\nIt was ended after {seconds:.0f} s."


def begin_case(name: str, seconds: float = 30.0) -> None:
    """Begin the next case on this rank: its name goes into the output, and it ends the rank after so many seconds."""
    print(f"case {name}", file=sys.stderr, flush=True)  # noqa: T201  (the output of this rank is a file)
    faulthandler.dump_traceback_later(seconds, exit=True)


class _Rank:
    """A process of its own session, whose output and result lie in a folder."""

    def __init__(self, rank: int, folder: Path, environment: dict[str, str], launch: Launch) -> None:
        self.rank, self._result, self._output = rank, folder / f"result {rank}", folder / f"output {rank}"
        self._was_killed = False
        own = {**launch.environments.get(None, {}), **launch.environments.get(rank, {})}
        self._process: Any
        if any(setting.startswith(_READ_ON_IMPORT) for setting in own):
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ranks.rank", str(folder), str(rank)],
                    env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
        else:
            from .rank import begin_forked

            arguments = (folder, rank, self._output, environment, Path.cwd())
            self._process = PROCESSES.Process(target=begin_forked, args=arguments, daemon=True)
            self._process.start()

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def failed(self) -> bool:
        """Whether it has ended, and not well."""
        return self.status() not in (None, 0)

    def show_stacks(self) -> None:
        """Let it write the stacks of its threads into its output, where it still runs."""
        if self.status() is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """End it, with all that it started."""
        self._was_killed = self.status() is None
        for kill in (os.killpg, os.kill):  # a forked one may not have its own session yet
            with suppress(ProcessLookupError):
                kill(self._process.pid, signal.SIGKILL)
        self._process.wait() if isinstance(self._process, subprocess.Popen) else self._process.join()

    def outcome(self) -> Outcome:
        """Return how it ended."""
        value, error = pickle.loads(self._result.read_bytes()) if self._result.exists() else (None, None)
        output = self._output.read_text(encoding="utf-8", errors="replace") if self._output.exists() else ""
        return Outcome(self.rank, None if self._was_killed else self.status(), value, error, output)


def _wait(ranks: list[_Rank], launch: Launch) -> None:
    """Wait until all ranks have ended, or their time is over: then those that run show their stacks."""
    end, someone_failed = time.monotonic() + launch.seconds, False
    while any(rank.status() is None for rank in ranks) and time.monotonic() < end:
        if not someone_failed and any(rank.failed() for rank in ranks):
            someone_failed, end = True, min(end, time.monotonic() + launch.patience)
        time.sleep(0.02)
    waiting = [rank for rank in ranks if rank.status() is None]
    for rank in waiting:
        rank.show_stacks()
    if waiting:
        time.sleep(1.0)  # for them to be written


def _environment(rank: int, size: int, port: str, launch: Launch) -> dict[str, str]:
    """Return the variables of a rank: those of torchrun for one machine, one thread, and its own settings."""
    job = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
    }  # fmt: skip
    own = (launch.environments.get(key, {}) for key in (None, rank))
    return {**os.environ, **job, **{name: value for settings in own for name, value in settings.items()}}


def _address(function: Callable[..., Any] | Path) -> tuple[str, str]:
    """Return the module and the name of a function, or the path of a script and nothing."""
    if isinstance(function, Path):
        return str(function.resolve()), ""
    path = Path(inspect.getfile(function)).resolve().relative_to(TESTS)
    return ".".join(path.with_suffix("").parts), function.__qualname__


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system gives to connections of its own."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise OSError("No port between 20000 and 30000 is free.")
