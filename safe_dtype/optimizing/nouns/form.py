"""A form of a model: one value with all that the optimizer needs to know of it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...facts import FLOAT32, Dtype
from .job import Dynamic

if TYPE_CHECKING:
    import torch

Run = Callable[..., "dict[str, torch.Tensor]"]  # takes the model's keyword inputs; outputs by name, as `outputs_of`


class GraphNeed(Enum):
    """What a form needs to capture of a model, which decides when it is tried."""

    NONE = "none"  # the model's own Python code runs: always tried
    OWN = "own"  # one graph, captured in a way of the form's own: always tried
    EXPORTED = "exported"  # one graph, of torch.export: tried where dynamo captures one, or "export" is verified
    WHOLE = "whole"  # one graph, of dynamo: tried where it captures one
    REGIONS = "regions"  # submodules that dynamo captures: tried where it does not capture the whole
    PIECES = "pieces"  # graph by graph: tried where dynamo does not capture the whole

    @property
    def one_graph(self) -> bool:
        """Whether the form is the model as one graph."""
        return self in (GraphNeed.OWN, GraphNeed.EXPORTED, GraphNeed.WHOLE)


@dataclass(frozen=True, slots=True)
class FormTarget:
    """Where a form is to be made or loaded, and in which dtype."""

    environment: Mapping[str, Any]  # of `environment.environment`
    device: str = "cpu"
    dtype: Dtype = FLOAT32

    @property
    def on_cpu(self) -> bool:
        """Whether the device is the CPU."""
        return self.device == "cpu"

    def of(self, dtype: Dtype) -> FormTarget:
        """Return the same in another dtype."""
        return replace(self, dtype=dtype)

    def without(self, *packages: str) -> str:
        """Return "the package a", or "the packages a, b", of those that are not installed; empty where all are."""
        absent = [name for name in packages if not self._has(name)]
        return f"the package{'s' * (len(absent) > 1)} {', '.join(absent)}" if absent else ""

    def _has(self, package: str) -> bool:
        recorded = self.environment["packages"]
        # The environment records what our own forms need; a form of another package may need any.
        return recorded[package] is not None if package in recorded else find_spec(package) is not None


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a form is made from, and where its files go."""

    model: torch.nn.Module  # for inference, in the form's dtype, on its device; the form may change it
    inputs: Mapping[str, torch.Tensor]  # the traced batch
    folder: Path  # exists, and is the form's own
    dynamic: Dynamic
    regions: tuple[str, ...] = ()  # names of the submodules to compile, for a form that captures regions


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind of file that a form leaves."""

    ending: str  # of the file's name: ".pt2"; where two kinds fit, the longer ending decides
    content: str  # in words: "a program of torch.export, which is unpickled"
    runs_code: bool = True  # whether loading it runs code that the file holds
    mark: str = ""  # regular expression of a member that only such an archive has; empty: no member is looked for


def _nothing(_: FormTarget) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form in which a model can be run: when it is tried, what it needs, and how it is made and loaded.

    What is missing is a noun phrase that completes "it needs ...": "a C++ compiler"; empty where nothing is.
    """

    name: str  # in records, on the command line, and of the module or entry point that brings it
    rank: int  # forms are tried from the lowest to the highest; eager is 0
    about: str  # a few words for people: "a program of torch.export, for this version of torch"
    build: Callable[[BuildRequest], Run]  # makes the form's files, if it has any, and returns what runs it
    load: Callable[[Path], Run] | None = None  # from the folder, in any process; None: it leaves no file
    files: tuple[FileKind, ...] = ()  # a file of another kind counts as one that runs code
    graph: GraphNeed = GraphNeed.NONE
    missing_to_build: Callable[[FormTarget], str] = _nothing
    missing_to_load: Callable[[FormTarget], str] = _nothing  # asked where it leaves a file
    only_asked: bool = False  # tried only where the user asks for it or allows it
    in_place: bool = False  # building it changes how the model itself runs
    of_one_torch: bool = False  # its files are for the version of torch that wrote them
    of_one_machine: bool = False  # its files are for the system and the processor that they were made on
    serves_generate: bool = False  # it is for `generate`, and not for calls: no other form takes its place
    eager: Callable[[torch.nn.Module], Run] | None = None  # what it is timed against; None: a call of the model

    def __post_init__(self) -> None:
        """Raise a TypeError that names the field: a form of another package is left out, and the log says why."""
        values: dict[str, Any] = {field: getattr(self, field) for field in self.__slots__}
        for field, holds, what in (
            ("name", bool(values["name"]) and isinstance(values["name"], str), "a name"),
            ("rank", type(values["rank"]) is int, "a whole number"),
            ("about", isinstance(values["about"], str), "a text"),
            ("build", callable(values["build"]), "a function"),
            ("load", values["load"] is None or callable(values["load"]), "a function or None"),
            ("files", all(isinstance(kind, FileKind) for kind in values["files"]), "a tuple of FileKind"),
            ("graph", isinstance(values["graph"], GraphNeed), "a GraphNeed"),
            ("missing_to_build", callable(values["missing_to_build"]), "a function"),
            ("missing_to_load", callable(values["missing_to_load"]), "a function"),
            ("eager", values["eager"] is None or callable(values["eager"]), "a function or None"),
        ):
            if not holds:
                raise TypeError(f"{field} of the form {self.name!r} must be {what}, not {values[field]!r}")

    def __str__(self) -> str:
        return self.name

    @property
    def leaves_a_file(self) -> bool:
        """Whether the form is a file; other forms are built again where they are loaded."""
        return self.load is not None

    def missing(self, target: FormTarget) -> str:
        """Return what is missing to use the form on `target` after it was made elsewhere; empty where nothing is."""
        return self._lacks(self.missing_to_load, target) if self.leaves_a_file else self.lacks_to_build(target)

    def lacks_to_build(self, target: FormTarget) -> str:
        """Return what is missing to make the form on `target`; empty where nothing is. Raises nothing."""
        return self._lacks(self.missing_to_build, target)

    def _lacks(self, missing: Callable[[FormTarget], str], target: FormTarget) -> str:
        try:
            return str(missing(target) or "")
        except (Exception, SystemExit) as exc:  # noqa: BLE001  # code of another package, which costs only its form
            return f"a package that can say what {self.name} needs ({type(exc).__name__}: {exc})"
