"""The picture of a plan: one bar a candidate, as long as it is predicted to take."""

from __future__ import annotations

from xml.etree import ElementTree

import factories as f

from safe_dtype.devices.priors import prior_facts
from safe_dtype.planning import make_plan
from safe_dtype.planning.time_bars import time_bars

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_it_takes() -> None:
    """The chosen candidate comes first; prompt and new tokens of each are as long as their seconds say."""
    plan = make_plan(f.AMPERE, f.checkpoint())
    picture = ElementTree.fromstring(time_bars(plan))
    rows = [row for row in picture.iter(f"{SVG}g") if row.get("class") == "row"]
    timed = {str(one.candidate): one.cost for one in plan.decisions if one.cost.seconds is not None}
    assert len(rows) == len(timed) > 1
    assert (rows[0].findtext(f"{SVG}title") or "").startswith(f"{plan.chosen.candidate}: ")  # type: ignore[union-attr]
    for row in rows:
        cost = timed[(row.findtext(f"{SVG}title") or "").partition(": ")[0]]
        first, last = (float(bar.attrib["width"]) for bar in row.iter(f"{SVG}rect"))
        if min(first, last) > 3:
            assert abs(first / last / ((cost.prefill_seconds or 0) / (cost.decode_seconds or 1)) - 1) < 0.05


def test_no_picture_without_seconds() -> None:
    """A plan from published facts knows no times, so a notebook shows its table alone."""
    plan = make_plan(prior_facts("NVIDIA Tesla T4"), f.checkpoint())
    assert time_bars(plan) == ""
    assert "<svg" not in plan._repr_html_()
    assert "<svg" in make_plan(f.AMPERE, f.checkpoint())._repr_html_()
