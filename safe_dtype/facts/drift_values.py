"""A drift as plain values, as it lies in files and caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

from .measured import Drift


def drift_to_dict(drift: Drift) -> dict[str, Any]:
    """Return the figures by name, infinities as they are. `heads` is there only where there are any, again by name."""
    values = asdict(replace(drift, heads=()))
    del values["heads"]
    heads = {name: drift_to_dict(head) for name, head in drift.heads}
    return values | ({"heads": heads} if heads else {})


def drift_from_dict(values: Mapping[str, Any]) -> Drift:
    """Return what `drift_to_dict` wrote, with or without `heads`; infinity may be the text "inf". More is left aside.

    Raises:
        KeyError, TypeError, ValueError: If it is something else.
    """
    measured = {
        field.name: values[field.name] if field.default is MISSING else values.get(field.name)
        for field in fields(Drift)
        if field.name not in ("kind", "positions", "heads")
    }
    numbers = {name: None if value is None else float(value) for name, value in measured.items()}
    heads = tuple((str(name), drift_from_dict(head)) for name, head in (values.get("heads") or {}).items())
    return Drift(str(values["kind"]), int(values["positions"]), **numbers, heads=heads)  # type: ignore[arg-type]
