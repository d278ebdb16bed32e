"""What was tried on a model, and the results. Nouns only: this is what `optimization.json` holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

from ...facts import Dtype

SCHEMA = "safe_dtype.optimize/1"
EAGER = "eager"  # the form of a model as it is: all others are compared with it


class Status(IntEnum):
    """How an optimization ended: the exit status of the command."""

    REACHED = 0  # the form that was asked for, in the dtype that was asked for
    FELL_BACK = 3  # a verified form, but another one; `why` says to what and why
    NO_DTYPE = 4  # nothing passed: the model is used as it was


class Outcome(str, Enum):
    """The result of one attempt."""

    VERIFIED = "verified"
    WRONG = "wrong"  # it runs, and its numbers are too far off
    FAILED = "failed"  # it could not be made, or not be loaded again
    CRASHED = "crashed"  # it ended the process
    TIMED_OUT = "timed out"
    SKIPPED = "skipped"  # with a reason: no compiler, a package that is missing, a dtype that the runtime lacks

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
    nonfinite: int = 0  # NaN and infinities that the reference does not have
    kl: float | None = None  # nats, the mean over positions, of logits of tokens and classes
    miou: float | None = None  # of the classes of pixels, the mean over the classes that either has
    scale: float = 1.0  # how many times as large one side is as the other, by their norms: 1 or more
    equal_entries: float | None = None  # share of ids, counts and elements of masks that are the same

    def worse(self, other: Distance) -> Distance:
        """Return the worse of both, figure by figure."""
        return Distance(
            max(self.max_abs, other.max_abs),
            max(self.relative, other.relative),
            min(self.cosine, other.cosine),
            _of_both(min, self.top1_agreement, other.top1_agreement),
            self.nonfinite + other.nonfinite,
            _of_both(max, self.kl, other.kl),
            _of_both(min, self.miou, other.miou),
            max(self.scale, other.scale),
            _of_both(min, self.equal_entries, other.equal_entries),
        )


def _of_both(worst: Callable[..., float], figure: float | None, other: float | None) -> float | None:
    return worst((value for value in (figure, other) if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the verification of one form."""

    name: str  # "traced", "held out", "reloaded", "user"
    distance: Distance  # of the form from eager, both in the attempt's dtype
    problem: str = ""  # why the distance is too large; empty where it is not


@dataclass(frozen=True, slots=True)
class Seconds:
    """The times of one attempt. None for a step that it did not reach."""

    build: float | None = None
    first_call: float | None = None
    run: float | None = None  # the median of a warm call
    eager: float | None = None  # the same of eager in this dtype, measured in turns with it
    spread: float | None = None  # interquartile range over the median


@dataclass(frozen=True, slots=True)
class FormAttempt:
    """One form in one dtype."""

    form: str  # the name of a form, which may be one that is not installed where the record is read
    dtype: Dtype
    outcome: Outcome
    reason: str = ""
    remedies: tuple[str, ...] = ()  # what was changed before: "experts_implementation=batched_mm"
    sites: tuple[BreakSite, ...] = ()
    stages: tuple[Stage, ...] = ()
    seconds: Seconds = Seconds()
    artifact: str = ""  # its folder, relative to the output folder
    artifact_files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by name in that folder
    bytes: int = 0
    regions: tuple[str, ...] = ()  # the submodules that are compiled, where the form is regional
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
    problem: str = ""  # why it is rejected; empty where it is accepted
    seconds: float | None = None  # the median of a warm call
    speedup: float | None = None  # times faster than float32, both run in turns in one process; None where not timed


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of inputs, as a safetensors file relative to the output folder."""

    role: str  # "traced", "held out", "user"
    file: str
    tensors: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # by name: shape, dtype; of masks, hides_a_row
    about: str = ""  # what it tests: "batch of 1", "padded", "one token", the user's file


@dataclass(frozen=True, slots=True)
class Optimization:
    """All results. The report, the model card and the exit status are made from it."""

    source: str  # as it was given; the folder's name alone where it was a path
    model_class: str  # transformers' name; "" where the model is a module of the caller's own
    device: str
    asked_form: str  # "auto", or a form
    asked_dtype: str  # "auto", or a dtype
    saved_dtype: str  # of the original's weights
    parameters: int = 0
    loaded_with: tuple[str, ...] = ()  # settings of a model that came from memory, as remedies
    original: str = "original"  # what eager is loaded from, relative to the output folder: a folder, or a file
    environment: Mapping[str, Any] = field(default_factory=dict)
    verdicts: tuple[Mapping[str, Any], ...] = ()  # of the device, by dtype
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of every input file
    batches: tuple[Batch, ...] = ()
    dynamic: Mapping[str, Any] = field(default_factory=dict)  # "batch": [1, 32], "dims": {input: {dimension: range}}
    reference: Mapping[str, Any] = field(default_factory=dict)  # what `reference_sanity` found
    graphs: Mapping[str, Any] = field(default_factory=dict)  # whether it captures whole, counted graphs, break sites
    dtypes: tuple[DtypeVerdict, ...] = ()
    attempts: tuple[FormAttempt, ...] = ()
    chosen: int | None = None  # the place of the attempt in `attempts`
    status: Status = Status.NO_DTYPE
    why: str = ""
    max_drift: float | None = None  # that the user allows from float32; None: what rounding explains, by dtype

    @property
    def winner(self) -> FormAttempt | None:
        """The attempt that is loaded from here; None where nothing passed."""
        return None if self.chosen is None else self.attempts[self.chosen]
