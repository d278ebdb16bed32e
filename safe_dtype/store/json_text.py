"""JSON of others: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """Return the value of a JSON text; `hooks` are those of `json.loads`.

    Raises:
        ValueError: If it is no JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(text, **hooks)
    except RecursionError as exc:
        raise ValueError("it is nested too deep") from exc


def parse_unambiguous_json(text: str | bytes) -> Any:
    """Return the value of a JSON text that every reader reads alike: no key twice in a table, no NaN, no Infinity.

    Raises:
        ValueError: If it is no such text.
    """
    return parse_json(text, object_pairs_hook=_table, parse_constant=_no_constant)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a table of it has a key twice")
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
