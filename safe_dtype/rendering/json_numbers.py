"""Numbers in JSON, which has neither infinity nor NaN: both are written as the text "inf", and read as infinity.

A figure that is one of them is beyond every limit, whichever it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_TEXT = "inf"


def json_number(value: Any) -> Any:
    """Return `value`, or "inf" where it is a float that is not finite."""
    return _TEXT if isinstance(value, float) and not math.isfinite(value) else value


def json_numbers(value: Any) -> Any:
    """Return plain values with every number as JSON can hold it: mappings as dicts, lists and tuples as lists."""
    if isinstance(value, Mapping):
        return {str(name): json_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_numbers(inner) for inner in value]
    return json_number(value)


def number_from_json(value: Any) -> Any:
    """Return what `json_number` was given: infinity for "inf", anything else as it is."""
    return math.inf if value == _TEXT else value
