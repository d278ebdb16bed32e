"""Try one form of a model in a process of its own: a crash or a hang costs only that attempt. Imports no torch."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .job import Job, Result
from .record import Attempt, Outcome

logger = logging.getLogger(__name__)

LOG = "attempt.log"
_LAST_WORDS = 300  # characters of a dead child's log that go into the reason


def run_attempt(job: Job, *, root: Path, seconds: float) -> Attempt:
    """Make and verify the job's form, and load what it left in a second process, within `seconds` in all.

    Paths in the attempt are relative to `root`, which holds the job's folder. This never raises on what the child
    does: an attempt that failed says why, and `attempt.log` in the job's folder has all that the processes wrote.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    log = job.out / LOG
    log.unlink(missing_ok=True)
    end = time.monotonic() + seconds
    found = _in_a_child(job, log, end, seconds)
    if found.outcome is Outcome.VERIFIED and job.form.leaves_a_file:
        again = _in_a_child(job.reload(), log, end, seconds)
        reason = "" if again.outcome is Outcome.VERIFIED else f"in a fresh process: {again.reason}"
        found = replace(found, outcome=again.outcome, reason=reason, stages=(*found.stages, *again.stages))
    assert found.outcome is not None  # _in_a_child leaves none without
    attempt = Attempt(
        form=job.form,
        dtype=job.dtype,
        outcome=found.outcome,
        reason=found.reason,
        remedies=job.remedies,
        sites=found.sites,
        stages=found.stages,
        seconds=found.seconds,
        artifact=_relative(job.artifact_folder, root) if found.bytes else "",
        bytes=found.bytes,
        log=_relative(log, root),
    )
    logger.info(
        "%s in %s: %s%s", attempt.form, attempt.dtype, attempt.outcome, f" ({attempt.reason})" * bool(attempt.reason),
        extra={"form": str(attempt.form), "dtype": attempt.dtype.name, "outcome": str(attempt.outcome)},
    )  # fmt: skip
    return attempt


def _in_a_child(job: Job, log: Path, end: float, seconds: float) -> Result:
    """Return what a child found, or how it ended."""
    job.result.unlink(missing_ok=True)
    order = job.result.with_suffix(".job.json")
    job.write(order)
    with log.open("ab") as writes:
        status = _status_of(order, writes.fileno(), end)
    found = Result.read(job.result) or Result("starting")
    if status is None:
        return replace(found, outcome=Outcome.TIMED_OUT, reason=f"stopped after {seconds:.0f} s, while {found.at}")
    if status < 0:
        name = signal.Signals(-status).name
        often = ", as the system does when memory is short" if name == "SIGKILL" else ""
        return replace(found, outcome=Outcome.CRASHED, reason=f"ended by {name}{often}, while {found.at}")
    if status or found.outcome is None:
        reason = f"ended with status {status}, while {found.at}: {_last_words(log)}"
        return replace(found, outcome=Outcome.CRASHED, reason=reason)
    return found


def _status_of(order: Path, log: int, end: float) -> int | None:
    """Run the child, and return its exit status; None where it was stopped at `end`."""
    child = subprocess.Popen(
        [sys.executable, "-m", "safe_dtype.optimizing.worker", str(order)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(one).resolve()) for one in sys.path)},
        start_new_session=True,  # a group of its own, with the compilers that it starts
    )
    try:
        return child.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started, also where it is itself gone: a compiler may outlive a crash."""
    if sys.platform == "win32":
        child.kill()
    else:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that is gone
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_words(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return text[-_LAST_WORDS:].replace("\n", " | ")


def _relative(path: Path, root: Path) -> str:
    return path.resolve().relative_to(root.resolve()).as_posix()
