"""What a child process is asked to try, and its result. Nouns only, exchanged as JSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...facts import Dtype, dtype_named
from ...store import write_whole
from .record import BreakSite, Distance, Outcome, Seconds, Stage

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Which dimensions of the inputs may vary, each as (smallest, largest), both included."""

    batch: Range | None = None  # of dimension 0 of every input
    dims: Mapping[str, Mapping[int, Range]] = field(default_factory=dict)  # of further ones, by input and dimension

    def __bool__(self) -> bool:
        return self.batch is not None or any(self.dims.values())

    def of(self, name: str) -> dict[int, Range]:
        """Return the ranges of the input `name`, by dimension."""
        return ({0: self.batch} if self.batch else {}) | dict(self.dims.get(name, {}))


@dataclass(frozen=True, slots=True)
class DriftLimit:
    """How far the user lets a candidate drift from eager in float32."""

    max_drift: float  # in the unit of `safe_dtype.exceeds`
    out: Path  # the folder of the attempt that wrote eager's outputs in float32

    def reference(self, number: int) -> Path:
        """Return the file of eager's outputs in float32 for batch `number`."""
        return _reference(self.out, number)


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt: a form of a model in a dtype."""

    model: Path  # a folder for `from_pretrained`, or a file of `save_module`
    model_class: str  # transformers' name of the class, empty for a file
    dtype: Dtype
    form: str
    out: Path  # the attempt's own folder: artifact, references and result go there
    inputs: Path  # safetensors: the batch that is traced
    held_out: tuple[Path, ...] = ()  # safetensors: batches that are not traced
    user: tuple[Path, ...] = ()  # safetensors: batches of the user's own data
    dynamic: Dynamic = Dynamic()
    loaded_with: tuple[str, ...] = ()  # settings of a model that came from memory, as remedies
    remedies: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()  # names of submodules, for a form that compiles regions
    stages: tuple[str, ...] = ("traced", "held out", "user")  # or ("reloaded",)
    time: bool = True
    beside_float32: bool = False  # for eager: take the time in turns with float32, both models in memory
    device: str = "cpu"
    threads: int | None = None  # of torch; None leaves its own choice
    drift_limit: DriftLimit | None = None  # of the form; None: it is compared with eager in its own dtype alone

    @property
    def artifact_folder(self) -> Path:
        """Where the form's files go."""
        return self.out / "artifact"

    @property
    def result(self) -> Path:
        """Where the child writes what it finds."""
        return self.out / ("reloaded.json" if "reloaded" in self.stages else "result.json")

    @property
    def batches(self) -> tuple[Path, ...]:
        """Every batch, the traced one first."""
        return (self.inputs, *self.held_out, *self.user)

    @property
    def stages_of_batches(self) -> tuple[str, ...]:
        """The stage that each batch belongs to."""
        return ("traced", *("held out" for _ in self.held_out), *("user" for _ in self.user))

    def reference(self, number: int) -> Path:
        """Return the file of eager's outputs for batch `number`."""
        return _reference(self.out, number)

    def reload(self) -> Job:
        """Return the job that loads this one's artifact in a fresh process, and compares."""
        return replace(self, stages=("reloaded",), time=False)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        fields = {
            **asdict(self), "dtype": self.dtype.name, "model": str(self.model),
            "out": str(self.out), "inputs": str(self.inputs), "held_out": [str(one) for one in self.held_out],
            "user": [str(one) for one in self.user],
            "drift_limit": {**asdict(self.drift_limit), "out": str(self.drift_limit.out)} if self.drift_limit else None,
        }  # fmt: skip
        path.write_text(json.dumps(fields, indent=1), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Job:
        """Read it back."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        batch, dims = fields["dynamic"]["batch"], fields["dynamic"]["dims"]
        fields["dynamic"] = Dynamic(
            _range(batch) if batch else None,
            {name: {int(dim): _range(ends) for dim, ends in by_dim.items()} for name, by_dim in dims.items()},
        )
        return Job(
            **fields
            | {"dtype": dtype_named(fields["dtype"])}
            | {name: Path(fields[name]) for name in ("model", "out", "inputs")}
            | {name: tuple(Path(one) for one in fields[name]) for name in ("held_out", "user")}
            | {name: tuple(fields[name]) for name in ("loaded_with", "remedies", "regions", "stages")}
            | {"drift_limit": _drift_limit(fields["drift_limit"])}
        )


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The results of a child so far. They are written at every step, so that a child that dies leaves them."""

    at: str  # what it is doing: "loading the model"
    outcome: Outcome | None = None  # None while it is at work
    reason: str = ""
    sites: tuple[BreakSite, ...] = ()
    stages: tuple[Stage, ...] = ()
    seconds: Seconds = field(default_factory=Seconds)
    bytes: int = 0

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_whole(path, json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> AttemptResult | None:
        """Read it back; None where the child wrote none."""
        if not path.exists():
            return None
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields["outcome"] = Outcome(fields["outcome"]) if fields["outcome"] else None
        fields["sites"] = tuple(BreakSite(**one) for one in fields["sites"])
        fields["stages"] = tuple(Stage(**one | {"distance": Distance(**one["distance"])}) for one in fields["stages"])
        fields["seconds"] = Seconds(**fields["seconds"])
        return AttemptResult(**fields)


def _reference(out: Path, number: int) -> Path:
    return out / "eager" / f"{number}.safetensors"


def _drift_limit(fields: dict[str, Any] | None) -> DriftLimit | None:
    return DriftLimit(fields["max_drift"], Path(fields["out"])) if fields else None


def _range(ends: list[int]) -> Range:
    low, high = ends
    return low, high
