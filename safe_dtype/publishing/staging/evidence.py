"""What is known of a staged variant: `safe_dtype.json` as nouns, and back. Everything that the card says is in here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import NotPublishableError
from ...facts import Drift
from ..release import State

SCHEMA = "safe_dtype.variant/1"
FILE = "safe_dtype.json"
NEEDS = (None, "safe_dtype")
HALF_ENDS = 65504.0  # float16's largest number

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

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return sum(one.size for path, one in self.files.items() if path.endswith(".safetensors"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values. JSON has no infinity: it is the text "inf"."""
        found = asdict(self)
        drift = {name: found.pop(name) for name in ("safe_dtype", "plain")}
        return {"schema": SCHEMA, **_plain({**found, "drift": {name: _flat(one) for name, one in drift.items()}})}

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Evidence:
        """Return what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']!r}, not {SCHEMA}")
        values = {one.name: found[one.name] for one in fields(Evidence) if one.name not in ("safe_dtype", "plain")}
        return Evidence(
            **values
            | {
                "base": Base(**found["base"]),
                "tensors": {name: DtypeCount(**one) for name, one in found["tensors"].items()},
                "safe_dtype": _fidelity(found["drift"]["safe_dtype"]),
                "plain": _fidelity(found["drift"]["plain"]),
                "measured_on": MeasuredOn(**found["measured_on"]),
                "ranges": tuple(LayerRange(**_numbers(one)) for one in found["ranges"]),
                "islands": tuple(found["islands"]),
                "files": {path: StagedFile(**one) for path, one in found["files"].items()},
                "forms": _forms(found["forms"]),
            }
        )

    def problems(self) -> list[str]:
        """Return what keeps a variant with this evidence from being published, a sentence each."""
        found = []
        if self.base.repo is None:
            found.append("its base is a folder: name the repository that it came from (base='org/model')")
        elif not _REPO.fullmatch(self.base.repo):
            found.append(f"base {self.base.repo!r} is no repository of the Hub ('org/model')")
        if self.base.revision is not None and not _SHA.fullmatch(self.base.revision):
            found.append(f"base revision {self.base.revision!r} is no commit of 40 hexadecimal digits")
        if not self.base.license:
            found.append("its license is not known: the base's card names none (license='...', as the base has it)")
        if self.needs not in NEEDS:
            found.append(f"needs {self.needs!r}, which is neither null nor 'safe_dtype'")
        if self.plain.beyond and self.needs is None:
            found.append(f"plain transformers computes something else ({self.plain.beyond}), and `needs` is not set")
        if self.safe_dtype.beyond:
            found.append(f"safe_dtype computes something else ({self.safe_dtype.beyond})")
        return found


def read_evidence(folder: Path) -> Evidence:
    """Read `folder`/safe_dtype.json.

    Raises:
        NotPublishableError: If there is none, or it is not one that this version reads.
    """
    try:
        return Evidence.from_dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as exc:
        raise not_publishable(folder, f"{FILE} cannot be read ({type(exc).__name__}: {exc})") from exc


def write_evidence(evidence: Evidence, folder: Path) -> None:
    """Write `folder`/safe_dtype.json."""
    text = json.dumps(evidence.to_dict(), indent=1, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8", newline="\n")


def not_publishable(
    folder: Path, happened: str, advice: str = "stage it again with `safe-dtype publish stage`"
) -> NotPublishableError:
    """Return the error for a folder that is not fit."""
    return NotPublishableError(str(State.NOT_STARTED), folder.name, happened, "nothing: nothing was sent", advice)


def _forms(found: Mapping[str, Any] | None) -> Forms | None:
    if found is None:
        return None
    return Forms(tuple(TriedForm(**one) for one in found["verified"]), found["others"], found["device"])


def _flat(fidelity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of the drift beside the rest, so that readers find `kl_mean` where they look for it."""
    return {**{name: one for name, one in fidelity.items() if name != "drift"}, **fidelity["drift"]}


def _fidelity(found: Mapping[str, Any]) -> Fidelity:
    values = _numbers(found)
    names = {one.name for one in fields(Drift)}
    drift = Drift(**{name: one for name, one in values.items() if name in names})
    rest = {name: one for name, one in values.items() if name not in names}
    kl = tuple(math.inf if one == "inf" else float(one) for one in rest.pop("kl"))
    return Fidelity(**rest, drift=drift, kl=kl)


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.inf if one == "inf" else one for name, one in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf"
    return value
