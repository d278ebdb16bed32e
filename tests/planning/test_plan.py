"""A plan is a value, and the same as JSON."""

from __future__ import annotations

import json
import pickle

import factories as f

from safe_dtype.facts import BFLOAT16
from safe_dtype.planning import make_plan


def test_json_is_complete() -> None:
    """The JSON form has a schema version, every candidate, its reason and its evidence."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16))
    read = json.loads(plan.to_json())
    assert read["schema"] == 1
    assert read["storage"] == "float32"
    assert {one["candidate"]["compute"] for one in read["decisions"]} == {"float32", "bfloat16", "float16"}
    (half,) = (one for one in read["decisions"] if one["candidate"]["compute"] == "float16")
    assert (half["accepted"], half["ground"]) == (False, "range")
    assert half["cost"]["bytes"] > half["cost"]["weight_bytes"]


def test_plan_is_a_value() -> None:
    """Equal facts give equal plans, which hash and survive pickling."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16))
    assert pickle.loads(pickle.dumps(plan)) == plan == make_plan(f.TURING, f.checkpoint(BFLOAT16))
    assert hash(plan) == hash(make_plan(f.TURING, f.checkpoint(BFLOAT16)))
