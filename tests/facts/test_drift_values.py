"""A drift in files: with heads, without, and from before there were any."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from safe_dtype import Drift
from safe_dtype.facts import drift_from_dict, drift_to_dict
from safe_dtype.rendering.json_numbers import json_numbers

PLAIN = Drift("tokens", 8, kl_mean=0.1, kl_p99=math.inf, top1_agreement=1.0, max_abs=0.5, rel_rms=0.25)
DETECTOR = replace(PLAIN, heads=(("pred_boxes", replace(PLAIN, kind="values", miou=0.5)),))


@pytest.mark.parametrize("drift", [PLAIN, DETECTOR], ids=["plain", "heads"])
def test_back_and_forth(drift: Drift) -> None:
    """Through JSON and back a drift is the same, infinity too."""
    assert drift_from_dict(drift_to_dict(drift)) == drift
    assert drift_from_dict(json.loads(json.dumps(json_numbers(drift_to_dict(drift)), allow_nan=False))) == drift


def test_without_heads() -> None:
    """No key is added where there are none, and files from before read as they did."""
    assert "heads" not in drift_to_dict(PLAIN)
    assert drift_from_dict({**drift_to_dict(PLAIN), "of_a_later_version": 1}) == PLAIN


def test_a_figure_is_missing() -> None:
    """Half a drift is none."""
    values = drift_to_dict(PLAIN)
    del values["kl_mean"]
    with pytest.raises(KeyError):
        drift_from_dict(values)
