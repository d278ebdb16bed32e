"""What was tried on a model, and what came of it. Nouns only: this is what `optimization.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..dtypes import Dtype

SCHEMA = "safe_dtype.optimize/1"


class Form(str, Enum):
    """A form in which a model can be run, in the order in which they are tried."""

    AOTI = "aoti"  # an AOTInductor package: native code for this machine
    EXPORT = "export"  # a program of torch.export: for this version of torch
    ONNX = "onnx"  # for onnxruntime
    COMPILE = "compile"  # torch.compile, the whole graph at once
    REGIONAL = "regional"  # torch.compile of the largest submodules that capture whole
    PARTIAL = "partial"  # torch.compile, graph by graph
    TORCHSCRIPT = "torchscript"  # a trace; asked for explicitly, deprecated, blind to other branches
    EAGER = "eager"  # as it is

    def __str__(self) -> str:
        return self.value

    @property
    def leaves_a_file(self) -> bool:
        """Whether the form is a file; the others are made anew by those who load."""
        return self in (Form.AOTI, Form.EXPORT, Form.ONNX, Form.TORCHSCRIPT)


class Outcome(str, Enum):
    """What came of one attempt."""

    VERIFIED = "verified"
    WRONG = "wrong"  # it runs, and its numbers are too far off
    FAILED = "failed"  # it could not be made, or not be loaded again
    CRASHED = "crashed"  # it ended the process
    TIMED_OUT = "timed out"
    SKIPPED = "skipped"  # with a reason: no compiler, a package that is missing, a dtype that the runtime has not

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class BreakSite:
    """A line of modelling code where a graph ends, or cannot be captured at all."""

    file: str  # from the package on: "transformers/models/dbrx/modeling_dbrx.py"
    line: int
    code: str
    reason: str  # torch's, its first line
    kind: str  # "data_dependent", "python_side_effect", "model_bug", "missing_op", "other"
    count: int = 1


@dataclass(frozen=True, slots=True)
class Distance:
    """How far one run's outputs lie from another's, the worst over outputs and inputs."""

    max_abs: float
    relative: float  # max_abs over the largest |reference|
    cosine: float
    top1_agreement: float | None = None  # of logits
    nonfinite: int = 0  # NaN and infinity that the reference has not

    def worse(self, other: Distance) -> Distance:
        """Return the worse of both, figure by figure."""
        agreements = [one for one in (self.top1_agreement, other.top1_agreement) if one is not None]
        return Distance(
            max(self.max_abs, other.max_abs),
            max(self.relative, other.relative),
            min(self.cosine, other.cosine),
            min(agreements, default=None),
            self.nonfinite + other.nonfinite,
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the verification of one form."""

    name: str  # "traced", "held out", "reloaded", "user"
    distance: Distance  # of the form from eager, both in the attempt's dtype
    problem: str = ""  # why that is too far; empty where it is not


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of one attempt went. None where it did not come to that."""

    build: float | None = None
    first_call: float | None = None
    run: float | None = None  # the median of a warm call
    eager: float | None = None  # the same of eager in this dtype, measured in turns with it
    spread: float | None = None  # interquartile range over the median


@dataclass(frozen=True, slots=True)
class Attempt:
    """One form in one dtype."""

    form: Form
    dtype: Dtype
    outcome: Outcome
    reason: str = ""
    remedies: tuple[str, ...] = ()  # what was changed first: "experts_implementation=batched_mm"
    sites: tuple[BreakSite, ...] = ()
    stages: tuple[Stage, ...] = ()
    seconds: Seconds = Seconds()
    artifact: str = ""  # a file or folder, relative to the output folder
    bytes: int = 0
    coverage: float | None = None  # share of the parameters inside of compiled regions
    log: str = ""  # what the attempt wrote, relative to the output folder

    @property
    def speedup(self) -> float | None:
        """How many times faster than eager in the same dtype."""
        return self.seconds.eager / self.seconds.run if self.seconds.eager and self.seconds.run else None


@dataclass(frozen=True, slots=True)
class DtypeVerdict:
    """One dtype in eager form against float32."""

    dtype: Dtype
    distance: Distance | None
    problem: str = ""  # why it is out; empty where it does
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Optimization:
    """Everything that was found out. The same facts make the report, the model card and the exit status."""

    source: str
    model_class: str
    asked_form: str  # "auto", or a form
    asked_dtype: str  # "auto", or a dtype
    environment: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 of every input file
    inputs: tuple[Mapping[str, Any], ...] = ()  # of each batch its role, and of each tensor shape, dtype, range
    reference: Mapping[str, Any] = field(default_factory=dict)  # steady, degenerate, largest |output|
    graphs: Mapping[str, Any] = field(default_factory=dict)  # counted graphs, and whether it captures whole
    dtypes: tuple[DtypeVerdict, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    chosen: int | None = None  # the place of the attempt in `attempts`
    why: str = ""
