"""Try one form of a model in a process of its own: a crash or a hang costs only that attempt. Imports no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ...processes.child import how_it_ended, last_words, status_of
from ..forms import form_named
from ..nouns.job import AttemptResult, Job
from ..nouns.record import FormAttempt, Outcome

logger = logging.getLogger(__name__)

LOG = "attempt.log"
_WORKER = "safe_dtype.optimizing.attempts.attempt_child"


def run_attempt(
    job: Job, *, root: Path, seconds: float, settings: Mapping[str, str] = MappingProxyType({})
) -> FormAttempt:
    """Make and verify the job's form, and load what it left in a second process, within `seconds` in all.

    `settings` are added to the environment of both processes. Paths in the attempt are relative to `root`, which holds
    the job's folder. Nothing that a child does is raised: an attempt that failed has a reason, and `attempt.log` in the
    job's folder has all that the processes wrote.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    log = job.out / LOG
    log.unlink(missing_ok=True)
    end = time.monotonic() + seconds
    leaves_a_file = form_named(job.form).leaves_a_file
    result = run_in_child(job, log, end, seconds, settings)
    if result.outcome is Outcome.VERIFIED and leaves_a_file:
        again = run_in_child(job.reload(), log, end, seconds, settings)
        reason = "" if again.outcome is Outcome.VERIFIED else f"in a fresh process: {again.reason}"
        result = replace(result, outcome=again.outcome, reason=reason, stages=(*result.stages, *again.stages))
    assert result.outcome is not None  # run_in_child leaves none without
    attempt = FormAttempt(
        form=job.form,
        dtype=job.dtype,
        outcome=result.outcome,
        reason=result.reason,
        remedies=job.remedies,
        sites=result.sites,
        stages=result.stages,
        seconds=result.seconds,
        artifact=_relative(job.artifact_folder, root) if result.bytes and leaves_a_file else "",
        bytes=result.bytes,
        regions=job.regions,
        log=_relative(log, root),
    )
    logger.info(
        "%s in %s: %s%s", attempt.form, attempt.dtype, attempt.outcome, f" ({attempt.reason})" * bool(attempt.reason),
        extra={"form": attempt.form, "dtype": attempt.dtype.name, "outcome": str(attempt.outcome)},
    )  # fmt: skip
    return attempt


def run_in_child(job: Job, log: Path, end: float, seconds: float, settings: Mapping[str, str]) -> AttemptResult:
    """Return the result of a child, or how it ended."""
    job.result.unlink(missing_ok=True)
    order = job.result.with_suffix(".job.json")
    job.write(order)
    status = status_of(_WORKER, order, log=log, end=end, settings=settings)
    result = AttemptResult.read(job.result) or AttemptResult("starting")
    ended = f"{how_it_ended(status, seconds)}, while {result.at}"
    if status is None:
        return replace(result, outcome=Outcome.TIMED_OUT, reason=ended)
    if status < 0:
        return replace(result, outcome=Outcome.CRASHED, reason=ended)
    if status or result.outcome is None:
        reason = f"ended with status {status}, while {result.at}: {last_words(log)}"
        return replace(result, outcome=Outcome.CRASHED, reason=reason)
    return result


def _relative(path: Path, root: Path) -> str:
    return path.resolve().relative_to(root.resolve()).as_posix()
