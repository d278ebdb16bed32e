"""Eager in every dtype, compared with eager in float32: the error of the dtype alone, without that of a form.

Where the user sets `max_drift`, that is the limit, as `verify` would judge it. Otherwise a dtype must stay within what
rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from safetensors.torch import load_file

from ...devices import facts_of
from ...facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, VerdictKind
from ..nouns.goal import Goal
from ..nouns.job import Job
from ..nouns.record import Distance, DtypeVerdict, FormAttempt, Outcome
from .limits import NO_DISTANCE, data_problem, distance_between, dtype_problem
from .load_model import decides_by_sigmoid
from .max_drift import drift_of_job
from .runner import run_attempt

# With these settings oneDNN uses other kernels. Some of those for AMX give wrong numbers: a convolution in bfloat16 and
# float16 from 16 channels to 16, with a kernel and a stride of 4, is off by more than its own size.
_OTHER_KERNELS = ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_FP16"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"})

JobFor = Callable[[Dtype], Job]


def judged_dtypes(goal: Goal, device: str) -> tuple[Dtype, ...]:
    """Return the dtypes to judge beside float32: the user's, else the 16-bit ones that the device was measured to have."""
    if goal.dtype:
        return (goal.dtype,)
    facts = facts_of(device)
    return tuple(
        dtype
        for dtype in (BFLOAT16, FLOAT16)
        if facts.verdict(dtype).kind not in (VerdictKind.UNSUPPORTED, VerdictKind.CRASHES)
    )


def judge_dtypes(
    dtypes: tuple[Dtype, ...], job_for: JobFor, *, root: Path, goal: Goal
) -> Iterator[tuple[FormAttempt, DtypeVerdict]]:
    """Run eager in each dtype, each in a process of its own, and compare it with eager in float32.

    A dtype that is wrong on a CPU is run again with other kernels of oneDNN, to tell a wrong kernel from rounding.

    Args:
        dtypes: With float32 as the first.
        job_for: Returns the job of an eager attempt in a dtype; the outputs that it writes are compared.
        root: The output folder.
        goal: What the user wants: `seconds` for each attempt, and `max_drift`.
    """
    reference, seconds = job_for(FLOAT32), goal.seconds
    seconds_float32: float | None = None
    for dtype in dtypes:
        job = job_for(dtype)
        attempt = run_attempt(job, root=root, seconds=seconds)
        verdict = _judged(attempt, job, reference, goal.max_drift)
        if dtype == FLOAT32:
            seconds_float32, verdict = verdict.seconds, replace(verdict, speedup=1.0)
        elif not job.beside_float32 and seconds_float32 and verdict.seconds:
            verdict = replace(verdict, speedup=seconds_float32 / verdict.seconds)
        if verdict.distance is not None and verdict.problem and dtype != FLOAT32 and job.device == "cpu":
            verdict = replace(
                verdict, problem=verdict.problem + _kernel_to_blame(job, reference, root=root, goal=goal)
            )
        if verdict.problem and attempt.outcome is Outcome.VERIFIED:
            # The attempt was compared with eager in the same dtype, that is with itself: that proves nothing here.
            attempt = replace(attempt, outcome=Outcome.WRONG, reason=verdict.problem)
        yield attempt, verdict


def _judged(attempt: FormAttempt, job: Job, reference: Job, max_drift: float | None) -> DtypeVerdict:
    if attempt.outcome is not Outcome.VERIFIED:
        return DtypeVerdict(job.dtype, None, attempt.reason or str(attempt.outcome))
    by_stage = {stage: _distance(job, reference, stage) for stage in dict.fromkeys(job.stages_of_batches)}
    worst = NO_DISTANCE
    for distance in by_stage.values():
        worst = worst.worse(distance)
    problems = (
        {stage: _rounding_problem(distance, job.dtype, stage) for stage, distance in by_stage.items()}
        if max_drift is None
        else {stage: _drift_problem(job, reference, stage, max_drift) for stage in by_stage}
    )
    text = "; ".join(f"{stage}: {problem}" for stage, problem in problems.items() if problem)
    return DtypeVerdict(job.dtype, worst, text, attempt.seconds.run, attempt.speedup)


def _rounding_problem(distance: Distance, dtype: Dtype, stage: str) -> str:
    return data_problem(distance, dtype) if stage == "user" else dtype_problem(distance, dtype)


def _drift_problem(job: Job, reference: Job, stage: str, max_drift: float) -> str:
    drift = drift_of_job(job, max_drift)
    for number in _batches_of(stage, job):
        files = (job.batches[number], reference.reference(number), job.reference(number))
        drift.add(*(load_file(file) for file in files))
    return drift.problem()


def _distance(job: Job, reference: Job, stage: str) -> Distance:
    worst, by_sigmoid = NO_DISTANCE, decides_by_sigmoid(job)
    for number in _batches_of(stage, job):
        outputs, expected = load_file(job.reference(number)), load_file(reference.reference(number))
        worst = worst.worse(distance_between(outputs, expected, by_sigmoid=by_sigmoid))
    return worst


def _batches_of(stage: str, job: Job) -> list[int]:
    return [number for number, stage_of_batch in enumerate(job.stages_of_batches) if stage_of_batch == stage]


def _kernel_to_blame(job: Job, reference: Job, *, root: Path, goal: Goal) -> str:
    """Return the settings under which this dtype is right, as a sentence; empty where there are none."""
    for settings in _OTHER_KERNELS:
        again = replace(job, out=job.out / "other-kernels", time=False)
        attempt = run_attempt(again, root=root, seconds=goal.seconds, settings=MappingProxyType(settings))
        if attempt.outcome is Outcome.VERIFIED and not _judged(attempt, again, reference, goal.max_drift).problem:
            return f". {_as_text(settings)} makes it right: a kernel of oneDNN for this CPU is wrong"
    return ""


def _as_text(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
