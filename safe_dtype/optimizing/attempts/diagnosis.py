"""Whether a model has a usable reference, and whether it captures as one graph: measured in a child before any attempt."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...processes.child import how_it_ended, last_words, status_of
from ...store import write_whole
from ..nouns.job import Job
from ..nouns.record import BreakSite

LOG = "diagnosis.log"
_WORKER = "safe_dtype.optimizing.attempts.diagnosis_child"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The results so far. They are written at every step, so that a child that dies leaves them."""

    at: str  # what the child is doing; "done" at the end
    reference: Mapping[str, Any] = field(default_factory=dict)  # of `reference_sanity`, on the traced batch
    unusable: Mapping[str, str] = field(default_factory=dict)  # batches that eager itself fails on -> why
    whole: bool | None = None  # whether it captures as one graph; None where that is not known
    kind: str = ""  # of the obstacle, as in `BreakSite`
    reason: str = ""
    sites: tuple[BreakSite, ...] = ()
    remedies: tuple[str, ...] = ()  # with these it captures whole, and computes the same
    tried: Mapping[str, str] = field(default_factory=dict)  # remedies that did not help -> why
    regions: tuple[str, ...] = ()  # largest submodules that capture whole
    varying: tuple[str, ...] = ()  # ... and those that are called in other shapes for other values
    coverage: float | None = None  # share of the parameters in `regions`
    coverage_varying: float | None = None  # ... and in `varying` too
    counts: tuple[Mapping[str, Any], ...] = ()  # graphs as torch._dynamo.explain counts them; no decision rests on it
    problem: str = ""  # how the child ended, where it did not reach "done"

    @property
    def captures(self) -> bool:
        """Whether it captures as one graph, with the remedies where it needs them."""
        return bool(self.whole or self.remedies)

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_whole(path, json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> Diagnosis | None:
        """Read it back; None where the child wrote none."""
        if not path.exists():
            return None
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields["sites"] = tuple(BreakSite(**one) for one in fields["sites"])
        return Diagnosis(
            **fields | {name: tuple(fields[name]) for name in ("remedies", "regions", "varying", "counts")}
        )


def diagnose(job: Job, *, seconds: float) -> Diagnosis:
    """Diagnose the job's model in the job's dtype, in a child, for at most `seconds`. The job's form is not used.

    Nothing that the child does is raised: the results before it died or was stopped are returned, and how it ended.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    order, answer, log = job.out / "diagnosis.job.json", job.out / "diagnosis.json", job.out / LOG
    answer.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    job.write(order)
    status = status_of(_WORKER, order, log=log, end=time.monotonic() + seconds)
    diagnosis = Diagnosis.read(answer) or Diagnosis("starting")
    if diagnosis.at == "done":
        return diagnosis
    how = diagnosis.problem or how_it_ended(status, seconds) or "it ended without a message"
    words = "" if diagnosis.problem or status is None or status < 0 else f": {last_words(log)}"
    return replace(diagnosis, problem=f"{how}, while {diagnosis.at}{words}")
