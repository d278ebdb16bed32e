"""What is known of a staged variant: `safe_dtype.json` as nouns, and back. Everything that the card says is in here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import NotPublishableError
from ...facts import Drift, drift_from_dict, drift_to_dict
from ...facts.variant import NEEDS, VARIANT_FILE, VARIANT_SCHEMA
from ...rendering.json_numbers import json_numbers, number_from_json
from ..release import State

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Base:
    """What the variant was made of, and what its own card says of itself."""

    repo: str | None  # on the Hub; None for a folder that nobody gave one for
    revision: str | None = None  # 40 hexadecimal digits; None for a folder
    license: str | None = None  # as the base's card has it, never a guess
    license_name: str | None = None
    license_link: str | None = None
    pipeline_tag: str | None = None
    saved: str = ""  # the dtype that it came in
    bytes: int = 0  # of its weights


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What one loader makes of the staged folder, against the base in float32 on the same machine."""

    loader: str  # "transformers" or "safe_dtype"
    loaded_in: str  # the dtype after loading
    ended_in: str  # ... and after the run: a guard may have left the first one
    drift: Drift
    nonfinite: int  # NaN and infinity among all the numbers that came out
    beyond: str | None  # why the drift is more than the limit; None where it is within
    kl: tuple[float, ...] = ()  # nats at each position, the first 512 at most; none where there are no distributions


@dataclass(frozen=True, slots=True)
class LayerRange:
    """The largest |number| that one layer hands on."""

    layer: str
    base: float  # of the base in float32
    variant: float  # of the staged folder as plain transformers runs it


@dataclass(frozen=True, slots=True)
class DtypeCount:
    """How much of the weights is in one dtype."""

    tensors: int
    numbers: int


@dataclass(frozen=True, slots=True)
class MeasuredOn:
    """The inputs that the fidelity was measured on."""

    kind: str  # "built-in text", "own text" or "random tokens"
    sha256: str | None  # of the text; None for random tokens
    positions: int


@dataclass(frozen=True, slots=True)
class StagedFile:
    """One file of the folder."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class TriedForm:
    """One form that `optimize` verified."""

    form: str  # "aoti", "export", "onnx", ...
    dtype: str
    error: float  # from eager in the same dtype, relative to the largest output
    over_eager: float | None  # times faster than eager in the same dtype, in the same process
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Forms:
    """What `optimize` found out of the base."""

    verified: tuple[TriedForm, ...]
    others: int  # attempts that were not verified, or not needed
    device: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known of one variant."""

    base: Base
    dtype: str  # of config.json
    architecture: str
    tensors: Mapping[str, DtypeCount]  # by dtype, from the headers of the files
    safe_dtype: Fidelity
    plain: Fidelity
    max_drift: float
    measured_on: MeasuredOn
    ranges: tuple[LayerRange, ...] = ()
    islands: tuple[str, ...] = ()
    rescale: Mapping[str, Any] | None = None  # the moves; `folded`: whether the files hold them
    needs: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)  # its name, and the verdicts on its dtypes
    versions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, StagedFile] = field(default_factory=dict)  # all but README.md and this file
    command: str = ""  # repeats it
    repo: str | None = None  # where it is going, for the card
    forms: Forms | None = None  # where `optimize` was at work before
    source_sha256: str | None = None  # of all files of a folder that it was made of; None for a repository

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(file.size for path, file in self.files.items() if path.endswith(".safetensors"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values of JSON."""
        record = asdict(self)
        for name in ("safe_dtype", "plain"):
            del record[name]
        drift = {"safe_dtype": _flat(self.safe_dtype), "plain": _flat(self.plain)}
        return {"schema": VARIANT_SCHEMA, **json_numbers({**record, "drift": drift})}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> Evidence:
        """Return what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        if record["schema"] != VARIANT_SCHEMA:
            raise ValueError(f"its schema is {record['schema']!r}, not {VARIANT_SCHEMA}")
        names = {field.name for field in fields(Evidence)} - {"safe_dtype", "plain", "source_sha256"}
        return Evidence(
            **{name: record[name] for name in names}
            | {
                "base": Base(**record["base"]),
                "tensors": {name: DtypeCount(**count) for name, count in record["tensors"].items()},
                "safe_dtype": _fidelity(record["drift"]["safe_dtype"]),
                "plain": _fidelity(record["drift"]["plain"]),
                "measured_on": MeasuredOn(**record["measured_on"]),
                "ranges": tuple(LayerRange(**_numbers(layer)) for layer in record["ranges"]),
                "islands": tuple(record["islands"]),
                "files": {path: StagedFile(**file) for path, file in record["files"].items()},
                "forms": _forms(record["forms"]),
                "source_sha256": record.get("source_sha256"),  # records of earlier versions have none
            }
        )

    def problems(self) -> list[str]:
        """Return what keeps a variant with this evidence from being published, a sentence each."""
        problems = []
        if self.base.repo is None:
            problems.append("its base is a folder: name the repository that it came from (base='org/model')")
        elif not _REPO.fullmatch(self.base.repo):
            problems.append(f"base {self.base.repo!r} is no repository of the Hub ('org/model')")
        if self.base.revision is not None and not _SHA.fullmatch(self.base.revision):
            problems.append(f"base revision {self.base.revision!r} is no commit of 40 hexadecimal digits")
        if not self.base.license:
            problems.append("its license is not known: the base's card names none (license='...', as the base has it)")
        if self.needs not in NEEDS:
            problems.append(f"needs {self.needs!r}, which is neither null nor 'safe_dtype'")
        if self.plain.beyond and self.needs is None:
            problems.append(
                f"plain transformers computes something else ({self.plain.beyond}), and `needs` is not set"
            )
        if self.safe_dtype.beyond:
            problems.append(f"safe_dtype computes something else ({self.safe_dtype.beyond})")
        return problems


def read_evidence(folder: Path) -> Evidence:
    """Read `folder`/safe_dtype.json.

    Raises:
        NotPublishableError: If there is none, or it is not one that this version reads.
    """
    try:
        return Evidence.from_dict(json.loads((folder / VARIANT_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError as exc:
        happened = f"it is no staged folder: there is no {VARIANT_FILE} in it"
        raise not_publishable(folder, happened, "make one with `safe-dtype publish stage`") from exc
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as exc:
        raise not_publishable(folder, f"{VARIANT_FILE} cannot be read ({type(exc).__name__}: {exc})") from exc


def write_evidence(evidence: Evidence, folder: Path) -> None:
    """Write `folder`/safe_dtype.json."""
    text = json.dumps(evidence.to_dict(), indent=1, allow_nan=False)
    (folder / VARIANT_FILE).write_text(text + "\n", encoding="utf-8", newline="\n")


def not_publishable(
    folder: Path, happened: str, advice: str = "stage it again with `safe-dtype publish stage`"
) -> NotPublishableError:
    """Return the error for a folder that is not fit."""
    return NotPublishableError(str(State.NOT_STARTED), folder.name, happened, "nothing: nothing was sent", advice)


def _forms(record: Mapping[str, Any] | None) -> Forms | None:
    if record is None:
        return None
    return Forms(tuple(TriedForm(**form) for form in record["verified"]), record["others"], record["device"])


def _flat(fidelity: Fidelity) -> dict[str, Any]:
    """Return the figures of the drift beside the rest, so that readers find `kl_mean` where they look for it."""
    rest = {name: value for name, value in asdict(fidelity).items() if name != "drift"}
    return rest | drift_to_dict(fidelity.drift)


def _fidelity(record: Mapping[str, Any]) -> Fidelity:
    of_drift = {field.name for field in fields(Drift)}
    drift = drift_from_dict(record)
    rest = {name: value for name, value in _numbers(record).items() if name not in of_drift}
    kl = tuple(float(number_from_json(value)) for value in rest.pop("kl"))
    return Fidelity(**rest, drift=drift, kl=kl)


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: number_from_json(value) for name, value in record.items()}
