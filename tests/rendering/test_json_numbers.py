"""JSON that every reader takes, also where a number is not finite."""

from __future__ import annotations

import json
import math

import pytest

from safe_dtype.rendering.json_numbers import json_number, json_numbers, number_from_json


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_not_finite(value: float) -> None:
    """What is not finite is a text, and comes back as infinity: beyond every limit."""
    assert json_number(value) == "inf"
    assert number_from_json(json_number(value)) == math.inf


@pytest.mark.parametrize("value", [0.0, 1e300, 3, True, None, "a text", "nan"])
def test_anything_else(value: object) -> None:
    """Anything else comes back as it was."""
    assert number_from_json(json_number(value)) is value


def test_nested() -> None:
    """Numbers are found at any depth; what comes out is strict JSON."""
    values = {"a": (1.0, math.inf), "b": {"c": [math.nan, {"d": -math.inf}]}, 3: "x"}
    plain = json_numbers(values)
    assert plain == {"a": [1.0, "inf"], "b": {"c": ["inf", {"d": "inf"}]}, "3": "x"}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
