"""The rescue of a model for float16 (rescale and islands) in a file beside its weights: it is measured only once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...facts import MOST_BITS, Rescale, Rows

FILE = "safe_dtype_rescale.json"
KEY, NOTE = "safe_dtype", "rescale"  # in config.json: {"safe_dtype": {"rescale": "safe_dtype_rescale.json"}}

_SCHEMA = "safe_dtype.rescale/1"
_MOST_EXPONENT = 126  # float32's


@dataclass(frozen=True, slots=True)
class Stored:
    """A rescue that was measured once, for weights that are saved as they were made: nothing in the files is moved."""

    rescale: Rescale | None
    islands: tuple[str, ...]  # modules in float32, names as in `named_modules()`
    max_drift: float | None  # its drift was measured to be within this; None: to be beyond what was allowed

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema": _SCHEMA,
            "rescale": self.rescale.to_dict() if self.rescale else None,
            "islands": list(self.islands),
            "max_drift": self.max_drift,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Stored:
        """Return what `to_dict` wrote. Whether a model has what it names, that model has to tell.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: If it is something else.
        """
        if values["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {values['schema']!r}, not {_SCHEMA}")
        islands, limit = values["islands"], values["max_drift"]
        if not isinstance(islands, list) or not all(isinstance(one, str) for one in islands):
            raise TypeError("its islands are no list of names")
        rescale = None if values["rescale"] is None else _checked(Rescale.from_dict(values["rescale"]))
        return Stored(rescale, tuple(islands), None if limit is None else float(limit))


def write_stored(stored: Stored, folder: Path) -> None:
    """Write `folder`/safe_dtype_rescale.json, and note in the config.json beside it that it is there."""
    text = json.dumps(stored.to_dict(), indent=1, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8", newline="\n")
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config[KEY] = {**config.get(KEY, {}), NOTE: FILE}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def is_noted(config: Mapping[str, Any]) -> bool:
    """Whether the file lies beside this config.json: a repository that says no such thing is not asked for it."""
    ours = config.get(KEY)
    return isinstance(ours, Mapping) and ours.get(NOTE) == FILE


def _checked(rescale: Rescale) -> Rescale:
    """Return `rescale`, if folding it in can go wrong in no other way than by a `RescaleError`."""
    if not all(_names_something(move.target, move.rows) for gauge, _ in rescale.shifts for move in gauge.moves):
        raise TypeError("one of its moves names no target, or no rows")
    if any(abs(bits) > MOST_BITS for _, bits in rescale.shifts):
        raise ValueError(f"it moves by more than {MOST_BITS} bits, beyond which float16 loses small numbers")
    if any(abs(exponent) > _MOST_EXPONENT for exponent in rescale.exponents().values()):
        raise ValueError(f"it multiplies by more than 2^{_MOST_EXPONENT}")
    return rescale


def _names_something(target: object, rows: Rows | None) -> bool:
    if rows is None:
        return isinstance(target, str)
    steps, ends = (rows.dim, rows.offset, rows.step), (rows.start, rows.stop)
    numbers = all(type(one) is int for one in steps) and all(isinstance(one, int | float) for one in ends)
    return isinstance(target, str) and numbers and rows.step > 0
