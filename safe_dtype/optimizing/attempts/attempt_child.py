"""The process in which one form of a model is tried: `python -m safe_dtype.optimizing.attempts.attempt_child JOB.json`.

It may crash, hang or use up the memory; its parent (`runner`) survives. It writes its result again at every step.
"""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from ...facts import FLOAT32
from ...numerics import uncompiled
from ..forms import form_named
from ..graphs.flat import outputs_of
from ..graphs.graph_breaks import reason_of, sites_of
from ..nouns.form import BuildRequest, Run
from ..nouns.job import AttemptResult, Job
from ..nouns.record import EAGER, Outcome, Seconds, Stage
from .limits import NO_DISTANCE, distance_between, form_problem
from .load_model import apply_remedies, decides_by_sigmoid, load_artifact, load_subject
from .stopwatch import in_turns, timed

if TYPE_CHECKING:
    from .max_drift import DriftFromFloat32

Outputs = dict[str, torch.Tensor]
BUILDING = "building"


def main(path: Path) -> None:
    """Do the job in `path`. What Python raises becomes a result; where this process dies, the parent reports it."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("safe_dtype").setLevel(logging.INFO)
    job = Job.read(path)
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    now = AttemptResult("starting")
    try:
        with torch.no_grad():
            for now in _reloaded(job) if "reloaded" in job.stages else _made(job):
                now.write(job.result)
    except Exception as exc:  # noqa: BLE001  # whatever torch, a backend or a model raises is a result
        traceback.print_exc()
        reason = f"while {now.at}: {type(exc).__name__}: {reason_of(exc)}"
        sites = sites_of(exc) if now.at == BUILDING else ()  # no other step can blame a line of the model
        replace(now, outcome=Outcome.FAILED, reason=reason, sites=sites).write(job.result)


def _made(job: Job) -> Iterator[AttemptResult]:
    """Make the form, and compare it with eager on every batch."""
    form = form_named(job.form)
    yield (now := AttemptResult("loading the model"))
    model = load_subject(job)
    batches = [_batch(path, job) for path in job.batches]
    yield (now := replace(now, at="running eager"))
    references = [_copied(outputs_of(model(**batch))) for batch in batches]
    for number, outputs in enumerate(references):
        job.reference(number).parent.mkdir(exist_ok=True)
        save_file({name: one.cpu().contiguous() for name, one in outputs.items()}, job.reference(number))
    apply_remedies(model, job.remedies)  # after eager: a difference that a remedy makes counts as the form's

    yield (now := replace(now, at=BUILDING))
    shutil.rmtree(job.artifact_folder, ignore_errors=True)  # of an earlier attempt in the same folder
    job.artifact_folder.mkdir()
    built: list[Run] = []
    request = BuildRequest(model, batches[0], job.artifact_folder, job.dynamic, job.regions)
    seconds = timed(lambda: built.append(form.build(request)), job.device)
    run = built[0]
    size = sum(one.stat().st_size for one in job.artifact_folder.rglob("*") if one.is_file())
    yield (now := replace(now, at="running the first call", seconds=Seconds(build=seconds), bytes=size))
    seconds = timed(lambda: run(**batches[0]), job.device)
    now = replace(now, seconds=replace(now.seconds, first_call=seconds))

    for name in dict.fromkeys(job.stages_of_batches):
        if name in job.stages:
            numbers = [number for number, stage in enumerate(job.stages_of_batches) if stage == name]
            yield (now := replace(now, at=f"comparing on the {name} inputs"))
            stage = _compared(name, run, {number: (batches[number], references[number]) for number in numbers}, job)
            now = replace(now, stages=(*now.stages, stage))
    now = _judged(now)
    if now.outcome is Outcome.VERIFIED and job.time:
        yield (now := replace(now, at="taking the time", outcome=None))
        now = _judged(replace(now, seconds=_with_times(now.seconds, run, model, batches[0], job)))
    yield replace(now, at="leaving")


def _reloaded(job: Job) -> Iterator[AttemptResult]:
    """Load what another process made, and compare it with what eager returned there."""
    yield (now := AttemptResult("loading the artifact"))
    run = load_artifact(form_named(job.form), job.artifact_folder, job.model_class)
    pairs = {number: (_batch(path, job), load_file(job.reference(number))) for number, path in enumerate(job.batches)}
    yield (now := replace(now, at="running what was loaded"))
    yield _judged(replace(now, at="leaving", stages=(_compared("reloaded", run, pairs, job),)))


def _batch(path: Path, job: Job) -> Outputs:
    dtype = getattr(torch, job.dtype.name)
    tensors: Outputs = load_file(path)
    return {name: one.to(job.device, dtype if one.is_floating_point() else one.dtype) for name, one in tensors.items()}


def _copied(outputs: Mapping[str, torch.Tensor]) -> Outputs:
    # Cloned: safetensors refuses tensors that share memory.
    return {name: tensor.detach().clone() for name, tensor in outputs.items()}


def _compared(name: str, run: Run, pairs: Mapping[int, tuple[Outputs, Outputs]], job: Job) -> Stage:
    """Run the form on batches by number, each with eager's outputs in the same dtype, and compare the outputs."""
    worst = NO_DISTANCE
    drift, by_sigmoid = _drift_from_float32(job), decides_by_sigmoid(job)
    for number, (batch, reference) in pairs.items():
        outputs = run(**batch)
        worst = worst.worse(distance_between(outputs, reference, by_sigmoid=by_sigmoid))
        if job.drift_limit is not None and drift is not None:
            drift.add(batch, load_file(job.drift_limit.reference(number)), outputs)
    return Stage(name, worst, form_problem(worst, job.dtype) or (drift.problem() if drift else ""))


def _drift_from_float32(job: Job) -> DriftFromFloat32 | None:
    if job.drift_limit is None:
        return None
    # Imported here, because it loads transformers: a child that runs a plain module starts sooner without.
    from .max_drift import drift_of_job

    return drift_of_job(job, job.drift_limit.max_drift)


def _judged(now: AttemptResult) -> AttemptResult:
    """Return the result with its outcome: verified where no stage has a problem."""
    problems = [f"{stage.name}: {stage.problem}" for stage in now.stages if stage.problem]
    if problems:
        return replace(now, outcome=Outcome.WRONG, reason="; ".join(problems))
    if not now.stages:
        return replace(now, outcome=Outcome.FAILED, reason="nothing was compared")
    return replace(now, outcome=Outcome.VERIFIED)


def _with_times(seconds: Seconds, run: Run, model: torch.nn.Module, batch: Outputs, job: Job) -> Seconds:
    form_seconds, base_seconds, spread = in_turns(lambda: run(**batch), timed_against(model, batch, job), job.device)
    return replace(seconds, run=form_seconds, eager=base_seconds, spread=spread)


def timed_against(model: torch.nn.Module, batch: Outputs, job: Job) -> Callable[[], object]:
    """Return what the form is timed against: eager in the same dtype, or in float32 where the form is eager."""
    if job.form == EAGER and job.beside_float32:
        reference = replace(job, dtype=FLOAT32)
        other, same_batch = load_subject(reference), _batch(job.inputs, reference)
        return lambda: outputs_of(other(**same_batch))

    form = form_named(job.form)  # asked here: finding a form would be timed with every call
    if form.eager is not None:
        answer = form.eager(model)
        return lambda: answer(**batch)
    in_place = form.in_place

    def eager() -> object:
        # A model that was compiled in place runs eagerly only where torch.compile is switched off.
        aside: AbstractContextManager[object] = uncompiled() if in_place else nullcontext()
        with aside:
            return outputs_of(model(**batch))

    return eager


if __name__ == "__main__":
    main(Path(sys.argv[1]))
