"""Every dtype in eager form against float32: the error of the dtype alone, apart from that of any form."""

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
from .limits import NO_DISTANCE, data_problem, distance_between, drift_problem, dtype_problem
from .runner import run_attempt

# With these oneDNN takes other kernels. Some of those for AMX give wrong numbers: a convolution in bfloat16 and float16
# from 16 channels to 16, with a kernel and a stride of 4, is off by more than its own size.
_OTHER_KERNELS = ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_FP16"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"})

JobFor = Callable[[Dtype], Job]


def judged_dtypes(goal: Goal, device: str) -> tuple[Dtype, ...]:
    """Return the dtypes beside float32 that are worth a look: not those that the device was measured not to have."""
    if goal.dtype:
        return (goal.dtype,)
    facts = facts_of(device)
    return tuple(
        one
        for one in (BFLOAT16, FLOAT16)
        if facts.verdict(one).kind not in (VerdictKind.UNSUPPORTED, VerdictKind.CRASHES)
    )


def judge_dtypes(
    dtypes: tuple[Dtype, ...], job_for: JobFor, *, root: Path, goal: Goal
) -> Iterator[tuple[FormAttempt, DtypeVerdict]]:
    """Run eager in each dtype, each in a process of its own, and hold it against float32.

    A dtype that is wrong on a CPU is run again with other kernels of oneDNN, to tell a wrong kernel from rounding.

    Args:
        dtypes: With float32 as the first.
        job_for: The job of an eager attempt in a dtype; its references are what is compared.
        root: The output folder.
        goal: Its time limit for each, and its limit of drift.
    """
    reference, seconds = job_for(FLOAT32), goal.seconds
    base: float | None = None
    for dtype in dtypes:
        job = job_for(dtype)
        attempt = run_attempt(job, root=root, seconds=seconds)
        verdict = _judged(attempt, job, reference, goal.max_drift)
        if dtype == FLOAT32:
            base, verdict = verdict.seconds, replace(verdict, speedup=1.0)
        elif not job.beside_float32 and base and verdict.seconds:
            verdict = replace(verdict, speedup=base / verdict.seconds)
        if verdict.distance is not None and verdict.problem and dtype != FLOAT32 and job.device == "cpu":
            verdict = replace(verdict, problem=verdict.problem + _blame(job, reference, root=root, goal=goal))
        if verdict.problem and attempt.outcome is Outcome.VERIFIED:
            # Eager agrees with itself; that is no verification where the dtype is wrong.
            attempt = replace(attempt, outcome=Outcome.WRONG, reason=verdict.problem)
        yield attempt, verdict


def _judged(attempt: FormAttempt, job: Job, reference: Job, max_drift: float | None) -> DtypeVerdict:
    if attempt.outcome is not Outcome.VERIFIED:
        return DtypeVerdict(job.dtype, None, attempt.reason or str(attempt.outcome))
    by_stage = {name: _distance(job, reference, name) for name in dict.fromkeys(job.stages_of_batches)}
    worst = NO_DISTANCE
    for distance in by_stage.values():
        worst = worst.worse(distance)
    problems = [
        f"{name}: {problem}"
        for name, distance in by_stage.items()
        if (problem := _problem(distance, job.dtype, name, max_drift))
    ]
    return DtypeVerdict(job.dtype, worst, "; ".join(problems), attempt.seconds.run, attempt.speedup)


def _problem(distance: Distance, dtype: Dtype, stage: str, max_drift: float | None) -> str:
    if max_drift is not None:
        return drift_problem(distance, max_drift)
    return data_problem(distance, dtype) if stage == "user" else dtype_problem(distance, dtype)


def _distance(job: Job, reference: Job, stage: str) -> Distance:
    worst = NO_DISTANCE
    for number, name in enumerate(job.stages_of_batches):
        if name == stage:
            found, expected = (load_file(one.reference(number)) for one in (job, reference))
            worst = worst.worse(distance_between(found, expected))
    return worst


def _blame(job: Job, reference: Job, *, root: Path, goal: Goal) -> str:
    """Return whose fault it is, where other kernels of oneDNN are right; empty where they are not."""
    for settings in _OTHER_KERNELS:
        again = replace(job, out=job.out / "other-kernels", time=False)
        attempt = run_attempt(again, root=root, seconds=goal.seconds, settings=MappingProxyType(settings))
        if attempt.outcome is Outcome.VERIFIED and not _judged(attempt, again, reference, goal.max_drift).problem:
            return f". {_as_text(settings)} makes it right: a kernel of oneDNN for this CPU is wrong"
    return ""


def _as_text(settings: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())
