"""One attempt whose form another tool makes: exported there, and verified here like any other. Imports no torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safe_dtype.errors import NotOptimizableError
from safe_dtype.optimizing.attempts.runner import LOG as ATTEMPT_LOG
from safe_dtype.optimizing.attempts.runner import run_attempt
from safe_dtype.optimizing.environment import environment as facts
from safe_dtype.optimizing.nouns.form import FormTarget
from safe_dtype.optimizing.nouns.job import Job
from safe_dtype.optimizing.nouns.record import FormAttempt, Outcome

from .exporting import LOG, Order, export
from .tasks import task_of
from .virtual_environment import environment

FORM = "onnx"
EXPORTED = "exported"  # a folder in the job's, deleted at the end


def attempt_via(
    job: Job,
    *,
    via: str,
    task: str = "",
    root: Path,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> FormAttempt:
    """Let `via` export the job's model to ONNX, and verify that file as `run_attempt` verifies one of our own.

    The tool's output is the first part of the attempt's log. Where the tool fails, the attempt is returned as failed.

    Args:
        job: The attempt; its form is ONNX.
        via: One of VIAS. Its environment is made first where it is not there yet, outside of the time limit.
        task: In optimum's words; empty for what the model's class says.
        root: The output folder, which holds the job's.
        seconds: The time limit of export and verification in all.
        progress: Called with a line of text before the environment is made.

    Raises:
        EnvironmentNotFitError: If the environment cannot be made.
    """
    # Imported here, because it loads torch, which a parent of attempts does not need before.
    from safe_dtype.optimizing.forms.onnx import FORM as ONNX
    from safe_dtype.optimizing.forms.onnx import GIVEN

    remedies = (f"via={via}", *((f"task={task}",) if task else ()))
    attempt = FormAttempt(FORM, job.dtype, Outcome.SKIPPED, remedies=remedies)
    if missing := ONNX.missing_to_load(FormTarget(facts(), job.device, job.dtype)):
        return replace(attempt, reason=f"it needs {missing}")
    if reason := _not_for_optimum(job):
        return replace(attempt, reason=reason)
    environment(via, progress=progress)
    begun = time.monotonic()
    exported = job.out / EXPORTED
    try:
        task = task or task_of(job.model, job.model_class)
        attempt = replace(attempt, remedies=(f"via={via}", f"task={task}"))
        file = export(Order(job.model, task, job.dtype, job.model_class), exported, via=via, seconds=seconds)
    except NotOptimizableError as exc:
        late = time.monotonic() - begun >= seconds
        outcome = Outcome.TIMED_OUT if late else Outcome.FAILED
        return replace(attempt, outcome=outcome, reason=exc.problem, log=_log(job, exported, root))
    spent = time.monotonic() - begun
    plain = replace(job, form=FORM, remedies=())  # `via` and `task` are no settings of the model
    verified = run_attempt(plain, root=root, seconds=seconds - spent, settings={GIVEN: str(file.parent)})
    built = replace(verified.seconds, build=spent + (verified.seconds.build or 0.0))
    return replace(verified, remedies=attempt.remedies, seconds=built, log=_log(job, exported, root))


def _not_for_optimum(job: Job) -> str:
    return "" if job.model_class else "optimum exports models of transformers, and this is a module of another kind"


def _log(job: Job, exported: Path, root: Path) -> str:
    """Put the tool's output before the attempt's in one log, delete the tool's folder, and return the log's name."""
    log = job.out / ATTEMPT_LOG
    parts = [one.read_bytes() for one in (exported / LOG, log) if one.exists()]
    job.out.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"".join(parts))
    shutil.rmtree(exported, ignore_errors=True)
    return log.resolve().relative_to(root.resolve()).as_posix()
