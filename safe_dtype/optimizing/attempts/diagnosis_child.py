"""The process in which a model is diagnosed: `python -m safe_dtype.optimizing.attempts.diagnosis_child JOB.json`."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..environment import reference_sanity
from ..graphs.capture import counts, whole_graph
from ..graphs.flat import outputs_of
from ..graphs.graph_breaks import reason_of
from ..graphs.regions import coverage, survey
from ..nouns.job import Job
from .diagnosis import Diagnosis
from .limits import distance_between, form_problem
from .load_model import apply_remedies, load_subject, remedies_for

_SECONDS_FOR_REGIONS = 120.0

Inputs = Mapping[str, torch.Tensor]


def main(path: Path) -> None:
    """Do the job in `path`."""
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    job = Job.read(path)
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    now = Diagnosis("starting")
    answer = job.out / "diagnosis.json"
    try:
        with torch.no_grad():
            for now in _diagnosed(job):
                now.write(answer)
    except Exception as exc:  # noqa: BLE001  # whatever a model or torch raises is a result
        traceback.print_exc()
        replace(now, problem=f"{type(exc).__name__}: {reason_of(exc)}").write(answer)


def _diagnosed(job: Job) -> Iterator[Diagnosis]:
    yield (now := Diagnosis("loading the model"))
    model = load_subject(job)
    traced, *others = [_batch(path, job) for path in job.batches]
    yield (now := replace(now, at="running it twice"))
    now = replace(now, reference=reference_sanity(lambda: outputs_of(model(**traced))))
    yield now
    if now.reference["problems"]:
        yield replace(now, at="done")
        return
    yield (now := replace(now, at="running it on the other batches", unusable=_unusable(model, others, job)))
    yield (now := replace(now, at="capturing it as one graph"))
    captured = whole_graph(model, traced)
    now = replace(now, whole=captured.whole, kind=captured.kind, reason=captured.reason, sites=captured.sites)
    if not captured.whole:
        yield (now := replace(now, at="trying remedies"))
        for step in _remedied(now, model, traced, job):
            yield (now := step)
    if not now.captures:
        yield (now := replace(now, at="looking for regions that capture"))
        model = load_subject(job)
        seen = survey(model, traced, seconds=_SECONDS_FOR_REGIONS)
        both = tuple(sorted({*seen.names, *seen.varying}))
        now = replace(
            now, regions=seen.names, varying=seen.varying, coverage=seen.coverage,
            coverage_varying=coverage(model, both),
        )  # fmt: skip
    yield (now := replace(now, at="counting graphs"))
    counted = counts(load_subject(job), traced)
    yield replace(now, at="done", counts=tuple(asdict(one) for one in counted))


def _batch(path: Path, job: Job) -> dict[str, torch.Tensor]:
    dtype = getattr(torch, job.dtype.name)
    tensors: dict[str, torch.Tensor] = load_file(path)
    return {name: one.to(job.device, dtype if one.is_floating_point() else one.dtype) for name, one in tensors.items()}


def _unusable(model: torch.nn.Module, others: list[dict[str, torch.Tensor]], job: Job) -> dict[str, str]:
    """Return the batches that eager fails on, by file name, and why: no form can be verified on them."""
    problems = {path.name: _broken(model, batch) for path, batch in zip(job.batches[1:], others, strict=True)}
    return {name: why for name, why in problems.items() if why}


def _broken(model: torch.nn.Module, batch: Inputs) -> str:
    try:
        names = [name for name, one in outputs_of(model(**batch)).items() if bool(one.isnan().any())]
    except Exception as exc:  # noqa: BLE001  # whatever the model raises
        return f"{type(exc).__name__}: {reason_of(exc)}"
    return f"eager gives NaN in {', '.join(names)}" if names else ""


def _remedied(now: Diagnosis, model: torch.nn.Module, traced: Inputs, job: Job) -> Iterator[Diagnosis]:
    """Try each remedy alone, until one computes the same and captures whole."""
    reference = {name: one.clone() for name, one in outputs_of(model(**traced)).items()}
    for remedy in remedies_for(model):
        yield (now := replace(now, at=f"trying {remedy}"))
        why = _why_not(remedy, traced, reference, job)
        if not why:
            yield replace(now, remedies=(remedy,))
            return
        now = replace(now, tried={**now.tried, remedy: why})
    yield now


def _why_not(remedy: str, traced: Inputs, reference: Inputs, job: Job) -> str:
    other = load_subject(job)
    try:
        apply_remedies(other, (remedy,))
        problem = form_problem(distance_between(outputs_of(other(**traced)), reference), job.dtype)
    except Exception as exc:  # noqa: BLE001  # a model may reject a remedy with any exception
        return f"{type(exc).__name__}: {reason_of(exc)}"
    return problem or whole_graph(other, traced).reason


if __name__ == "__main__":
    main(Path(sys.argv[1]))
