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


def to_dict(record: Optimization) -> dict[str, Any]:
    """Return it as plain JSON values, the schema version first."""
    return {"schema": SCHEMA, **_plain(asdict(record))}


def write_record(record: Optimization, out: Path) -> Path:
    """Write `out`/optimization.json, whole or not at all, and return its path."""
    path = out / FILE
    write_whole(path, json.dumps(to_dict(record), indent=1, allow_nan=False) + "\n")
    return path


def read_record(out: Path) -> Optimization:
    """Read `out`/optimization.json.

    Raises:
        NotOptimizedError: If there is none, or it is not one that this version reads.
    """
    path = out / FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise NotOptimizedError(str(out), f"there is no {FILE} in it") from None
    except ValueError as exc:
        raise NotOptimizedError(str(out), f"{FILE} is not JSON ({exc})") from None
    if not isinstance(fields, dict) or fields.pop("schema", None) != SCHEMA:
        raise NotOptimizedError(str(out), f"{FILE} is not of the schema {SCHEMA}")
    try:
        return _optimization(fields)
    except (KeyError, TypeError, ValueError) as exc:
        raise NotOptimizedError(str(out), f"{FILE} is damaged: {type(exc).__name__}: {exc}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Dtype):
        return value.name
    if isinstance(value, Mapping):
        # asdict makes a dict of a Dtype too, which is a dataclass: its name is enough.
        return value["name"] if _is_a_dtype(value) else {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return None  # JSON has neither NaN nor infinity; `nonfinite` counts them
    return value


def _is_a_dtype(value: Mapping[Any, Any]) -> bool:
    return value.keys() == set(Dtype.__dataclass_fields__)


def _optimization(fields: dict[str, Any]) -> Optimization:
    return Optimization(
        **fields
        | {
            "loaded_with": tuple(fields["loaded_with"]),
            "verdicts": tuple(fields["verdicts"]),
            "batches": tuple(Batch(**one) for one in fields["batches"]),
            "dtypes": tuple(
                DtypeVerdict(
                    **verdict | {"dtype": dtype_named(verdict["dtype"]), "distance": _distance(verdict["distance"])}
                )
                for verdict in fields["dtypes"]
            ),
            "attempts": tuple(_attempt(one) for one in fields["attempts"]),
            "status": Status(fields["status"]),
        }
    )


def _attempt(fields: dict[str, Any]) -> FormAttempt:
    return FormAttempt(
        **fields
        | {
            "dtype": dtype_named(fields["dtype"]),
            "outcome": Outcome(fields["outcome"]),
            "remedies": tuple(fields["remedies"]),
            "regions": tuple(fields["regions"]),
            "sites": tuple(BreakSite(**one) for one in fields["sites"]),
            "stages": tuple(Stage(**one | {"distance": _distance(one["distance"])}) for one in fields["stages"]),
            "seconds": Seconds(**fields["seconds"]),
        }
    )


def _distance(figures: dict[str, Any] | None) -> Distance | None:
    if figures is None:
        return None
    # A figure that is not finite was written as null.
    beyond: dict[str, Any] = {"max_abs": float("inf"), "relative": float("inf"), "cosine": -1.0, "scale": float("inf")}
    values: dict[str, Any] = {name: beyond.get(name) if one is None else one for name, one in figures.items()}
    return Distance(**values)
