"""`optimization.json`: an optimization as a file, and back. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from ...errors import NotOptimizedError
from ...facts import Dtype, dtype_named
from ...store import write_whole
from .record import (
    SCHEMA,
    Batch,
    BreakSite,
    Distance,
    DtypeVerdict,
    FormAttempt,
    Optimization,
    Outcome,
    Seconds,
    Stage,
    Status,
)

FILE = "optimization.json"


def to_dict(found: Optimization) -> dict[str, Any]:
    """Return it as plain JSON values, the schema version first."""
    return {"schema": SCHEMA, **_plain(asdict(found))}


def write_record(found: Optimization, out: Path) -> Path:
    """Write `out`/optimization.json, whole or not at all, and return its path."""
    path = out / FILE
    write_whole(path, json.dumps(to_dict(found), indent=1, allow_nan=False) + "\n")
    return path


def read_record(out: Path) -> Optimization:
    """Read `out`/optimization.json.

    Raises:
        NotOptimizedError: If there is none, or it is not one that this version reads.
    """
    path = out / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise NotOptimizedError(str(out), f"there is no {FILE} in it") from None
    except ValueError as exc:
        raise NotOptimizedError(str(out), f"{FILE} is not JSON ({exc})") from None
    if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
        raise NotOptimizedError(str(out), f"{FILE} is not of the schema {SCHEMA}")
    try:
        return _optimization(found)
    except (KeyError, TypeError, ValueError) as exc:
        raise NotOptimizedError(str(out), f"{FILE} is damaged: {type(exc).__name__}: {exc}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Dtype):
        return value.name
    if isinstance(value, Mapping):
        # asdict goes into Dtype as well, which is a dataclass: its name says it all.
        return value["name"] if _is_a_dtype(value) else {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return None  # JSON has neither NaN nor infinity; `nonfinite` counts them
    return value


def _is_a_dtype(value: Mapping[Any, Any]) -> bool:
    return value.keys() == set(Dtype.__dataclass_fields__)


def _optimization(found: dict[str, Any]) -> Optimization:
    return Optimization(
        **found
        | {
            "loaded_with": tuple(found["loaded_with"]),
            "verdicts": tuple(found["verdicts"]),
            "batches": tuple(Batch(**one) for one in found["batches"]),
            "dtypes": tuple(
                DtypeVerdict(**one | {"dtype": dtype_named(one["dtype"]), "distance": _distance(one["distance"])})
                for one in found["dtypes"]
            ),
            "attempts": tuple(_attempt(one) for one in found["attempts"]),
            "status": Status(found["status"]),
        }
    )


def _attempt(found: dict[str, Any]) -> FormAttempt:
    return FormAttempt(
        **found
        | {
            "dtype": dtype_named(found["dtype"]),
            "outcome": Outcome(found["outcome"]),
            "remedies": tuple(found["remedies"]),
            "regions": tuple(found["regions"]),
            "sites": tuple(BreakSite(**one) for one in found["sites"]),
            "stages": tuple(Stage(**one | {"distance": _distance(one["distance"])}) for one in found["stages"]),
            "seconds": Seconds(**found["seconds"]),
        }
    )


def _distance(found: dict[str, Any] | None) -> Distance | None:
    if found is None:
        return None
    # A figure that is not finite was written as none.
    beyond: dict[str, Any] = {"max_abs": float("inf"), "relative": float("inf"), "cosine": -1.0}
    values: dict[str, Any] = {name: beyond.get(name) if one is None else one for name, one in found.items()}
    return Distance(**values)
