"""The search for the fastest form: diagnose, judge the dtypes, try form by form, choose, write the results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..devices import memory_of
from ..facts import FLOAT32, Dtype
from ..rendering.progress import tell as tell_progress
from .attempts.diagnosis import Diagnosis, diagnose
from .attempts.dtype_axis import judge_dtypes, judged_dtypes
from .attempts.runner import run_attempt
from .environment import hashes
from .exporters import exporter_named
from .inputs.answered_sizes import sizes_of_batches
from .model_source import ModelSource
from .nouns.form import FormTarget
from .nouns.goal import Goal
from .nouns.job import DriftLimit, Job
from .nouns.record import EAGER, Batch, DtypeVerdict, FormAttempt, Optimization, Outcome
from .nouns.record_file import read_record, write_record
from .order import Known, Rung, forms_to_try, rungs_of
from .report.choose import choose
from .report.plot import report_svg
from .report.report import report_text
from .report.report_page import report_page
from .serving.trust import remember_made

ATTEMPTS, REPORT, PICTURE, PAGE = "attempts", "report.md", "report.svg", "report.html"

# In `auto`, no forms are tried in a dtype in which eager has less than this share of the speed of float32. Where a CPU
# emulates a dtype, the matrix products are slow, and compilers only make faster what lies between them.
_HOPELESS = 0.67
_BEFORE_FORMS = 2  # what takes about as long as a form: the reference with its graphs, and eager in all dtypes

Tell = Callable[[str], None]


@dataclass
class Climb:
    """One search for the fastest form of a model."""

    source: ModelSource
    out: Path
    goal: Goal
    device: str
    tell: Tell
    number: int = 0  # of the attempts so far
    drift_limit: DriftLimit | None = None  # of every form, once eager has run in float32; None: the user sets none

    def all_the_way(self, record: Optimization) -> Optimization:
        """Diagnose, judge the dtypes, try the forms, choose, and write it all down."""
        self.tell("running the reference, and trying to capture it")
        diagnosis = diagnose(self._job(EAGER, FLOAT32, record.batches), seconds=self.goal.seconds)
        usable = tuple(one for one in record.batches if Path(one.file).name not in diagnosis.unusable)
        answered = sizes_of_batches(self.goal.dynamic, record.batches, usable)
        self.goal = replace(self.goal, dynamic=answered)
        record = replace(
            record,
            reference=diagnosis.reference,
            graphs=_graphs(diagnosis),
            batches=usable,
            dynamic=asdict(answered),
            why=_no_reference(diagnosis),
        )
        if record.why:
            return self._written(record)
        record = self._with_dtypes(record)
        for attempt in self._attempts(record, diagnosis):
            record = replace(record, attempts=(*record.attempts, attempt))
            write_record(record, self.out)  # so that a run that is stopped leaves its results
        choice = choose(record.attempts, record.dtypes, form=self.goal.form, dtype=self.goal.dtype)
        return self._written(replace(record, chosen=choice.attempt, status=choice.status, why=choice.why))

    def _with_dtypes(self, record: Optimization) -> Optimization:
        dtypes = tuple(dict.fromkeys((FLOAT32, *judged_dtypes(self.goal, self.device))))
        attempts: list[FormAttempt] = []
        verdicts: list[DtypeVerdict] = []
        jobs = {dtype: self._job(EAGER, dtype, record.batches) for dtype in dtypes}
        if self.goal.max_drift is not None:
            self.drift_limit = DriftLimit(self.goal.max_drift, jobs[FLOAT32].out)
        both = memory_of(self.device).has_room_for(self.source.parameters * 6)  # float32 beside 16 bit
        jobs = {dtype: replace(job, beside_float32=both and dtype != FLOAT32) for dtype, job in jobs.items()}
        self.tell(f"running eager in {', '.join(str(one) for one in dtypes)}")
        for attempt, verdict in judge_dtypes(dtypes, jobs.__getitem__, root=self.out, goal=self.goal):
            attempts.append(attempt)
            verdicts.append(verdict)
            self.tell(f"eager in {verdict.dtype}: {verdict.problem or 'passes'}")
        return replace(record, attempts=tuple(attempts), dtypes=tuple(verdicts))

    def _attempts(self, record: Optimization, diagnosis: Diagnosis) -> Iterator[FormAttempt]:
        """Try form by form, each in float32 first, and stop where the form that was asked for is reached."""
        tried = list(record.attempts)
        if any(one.dtype == FLOAT32 and one.problem for one in record.dtypes) or _reached(tried, self.goal):
            return  # nothing to compare a form with, or eager was asked for
        dtypes = self._ladder_dtypes(record)
        by_others = frozenset({exporter_named(self.goal.via).FORM}) if self.goal.via else frozenset()
        known = Known(diagnosis, FormTarget(record.environment, self.device), by_others)
        # `_with_dtypes` has tried eager.
        forms = [one for one in forms_to_try(self.goal.form, torchscript=self.goal.torchscript) if one.name != EAGER]
        for number, form in enumerate(forms):
            for place, dtype in enumerate(dtypes):
                done = _BEFORE_FORMS + number + place / len(dtypes)
                tell_progress(f"{form} in {dtype}", done, _BEFORE_FORMS + len(forms))
                for rung in rungs_of(form, dtype, known, tried):
                    attempt = self._tried(rung, record.batches)
                    tried.append(attempt)
                    yield attempt
            if self.goal.form == form.name and _reached(tried, self.goal):
                return

    def _ladder_dtypes(self, record: Optimization) -> tuple[Dtype, ...]:
        """Return float32 and the dtypes that passed: the one asked for, else those that may be faster, fastest first."""
        passed = [one for one in record.dtypes if not one.problem and one.dtype != FLOAT32]
        if not self.goal.dtype:
            passed = [one for one in passed if (one.speedup or 1.0) >= _HOPELESS]
        passed.sort(key=lambda one: -(one.speedup or 1.0))
        return (FLOAT32, *(one.dtype for one in passed))

    def _tried(self, rung: Rung, batches: tuple[Batch, ...]) -> FormAttempt:
        if rung.skip:
            return FormAttempt(
                rung.form, rung.dtype, Outcome.SKIPPED, rung.skip, rung.remedies, regions=rung.regions,
                coverage=rung.coverage,
            )  # fmt: skip
        self.tell(f"trying {rung}")
        job = self._job(
            rung.form, rung.dtype, batches, remedies=rung.remedies, regions=rung.regions, drift_limit=self.drift_limit
        )
        attempt = replace(self._run(job), coverage=rung.coverage)
        times = f", {attempt.speedup:.2f}x eager" if attempt.speedup else ""
        self.tell(f"{rung}: {attempt.outcome}{times}{': ' * bool(attempt.reason)}{attempt.reason}")
        return attempt

    def _run(self, job: Job) -> FormAttempt:
        exporter = exporter_named(self.goal.via) if self.goal.via else None
        if exporter is None or job.form != exporter.FORM:
            return run_attempt(job, root=self.out, seconds=self.goal.seconds)
        return exporter.attempt_via(
            job, via=self.goal.via, task=self.goal.task, root=self.out, seconds=self.goal.seconds, progress=self.tell
        )

    def _job(self, form: str, dtype: Dtype, batches: tuple[Batch, ...], **more: Any) -> Job:
        files = {role: tuple(self.out / one.file for one in batches if one.role == role) for role in _roles(batches)}
        name = f"{self.number:02d}-{form}-{dtype}"
        self.number += 1
        return Job(
            model=self.source.path,
            model_class=self.source.model_class,
            dtype=dtype,
            form=form,
            out=self.out / ATTEMPTS / name,
            inputs=files["traced"][0],
            held_out=files.get("held out", ()),
            user=files.get("user", ()),
            dynamic=self.goal.dynamic,
            loaded_with=self.source.loaded_with,
            device=self.device,
            threads=self.goal.threads,
            **more,
        )

    def _written(self, record: Optimization) -> Optimization:
        """Keep the files of the chosen attempt, delete the others, and write the record, the report, its picture and its page."""
        attempts = []
        for number, attempt in enumerate(record.attempts):
            stays = number == record.chosen or (self.goal.keep and attempt.outcome is Outcome.VERIFIED)
            files = self.out / attempt.artifact if attempt.artifact else None
            if files is not None and stays:
                attempts.append(replace(attempt, artifact_files=hashes(files)))
                continue
            if files is not None:
                shutil.rmtree(files, ignore_errors=True)
            attempts.append(replace(attempt, artifact=""))
        for eager in (self.out / ATTEMPTS).glob("*/**/eager"):
            shutil.rmtree(eager, ignore_errors=True)  # as large as the outputs of every batch
        record = replace(record, attempts=tuple(attempts))
        write_record(record, self.out)
        (self.out / REPORT).write_text(report_text(record), encoding="utf-8")
        (self.out / PICTURE).write_text(report_svg(record), encoding="utf-8")
        (self.out / PAGE).write_text(report_page(record), encoding="utf-8")
        remember_made(self.out, record)
        return read_record(self.out)  # so that the caller gets the same values as those who read the file


def _roles(batches: tuple[Batch, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.role for one in batches))


def _reached(tried: list[FormAttempt], goal: Goal) -> bool:
    return any(
        attempt.form == goal.form and attempt.outcome is Outcome.VERIFIED and goal.dtype in (None, attempt.dtype)
        for attempt in tried
    )


def _graphs(diagnosis: Diagnosis) -> dict[str, Any]:
    names = (
        "whole", "kind", "reason", "remedies", "tried", "regions", "varying", "coverage", "coverage_varying", "counts",
        "unusable", "problem",
    )  # fmt: skip
    fields = asdict(diagnosis)
    return {name: fields[name] for name in names} | {"sites": fields["sites"]}


def _no_reference(diagnosis: Diagnosis) -> str:
    """Return why nothing can be verified; empty where it can."""
    if not diagnosis.reference:
        return f"the reference could not be run: {diagnosis.problem}"
    problems = diagnosis.reference["problems"]
    return f"float32 itself is no reference: {'; '.join(problems)}" if problems else ""
