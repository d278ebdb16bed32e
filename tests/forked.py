"""Processes that begin as a copy of one that has imported torch already: a tenth of a second in place of four.

They are processes of their own in every other way: they may crash, hang and be killed. What a fresh interpreter does is
tested where children run as ever: in tests/processes, in optimizing/attempts/test_runner.py and by the command.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safe_dtype.processes import child

# All that is forked anywhere in the tests: a process has one such server. It has no threads.
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
PROCESSES.set_forkserver_preload([
    "publishing.stages", "safe_dtype.publishing.pushing.push", "torch", "transformers", "optimizing.form_models",
    "safe_dtype.optimizing.attempts.load_model", "safe_dtype.optimizing.attempts.max_drift",
    "safe_dtype.optimizing.graphs.regions", "torch.export",
])  # fmt: skip

run_afresh = child.run


def run_forked(command: Sequence[str], *, log: Path, end: float | None, environment: Mapping[str, str]) -> int | None:
    """Run `python -m module ...` as `processes.child.run` does, in a copy; what needs another Python, as ever."""
    settings = {name for name in {*environment, *os.environ} if environment.get(name) != os.environ.get(name)}
    if sys.platform != "linux" or list(command[:2]) != [sys.executable, "-m"] or settings - {"PYTHONPATH"}:
        return run_afresh(command, log=log, end=end, environment=environment)
    process = PROCESSES.Process(
        target=_as_main, args=(list(command[2:]), log.resolve(), Path.cwd(), dict(environment))
    )
    process.start()
    process.join(None if end is None else max(0.0, end - time.monotonic()))
    status = process.exitcode
    process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)  # what it started itself
    process.join()
    return status


def begin_apart(output: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Give this process, which was forked, a session, an output, a working folder and an environment of its own."""
    os.setsid()
    with output.open("ab") as writes, Path(os.devnull).open("rb") as nothing:
        for stream, number in ((nothing, 0), (writes, 1), (writes, 2)):
            os.dup2(stream.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = environment["PYTHONPATH"].split(os.pathsep)


def _as_main(arguments: list[str], log: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Run the module that comes first in `arguments`, with the rest as its own, all output appended to `log`."""
    begin_apart(log, folder, environment)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
