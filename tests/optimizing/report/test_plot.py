"""The picture of an optimization."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from optimizing.recorded import FAST, RECORD, WRONG

from safe_dtype.facts import BFLOAT16
from safe_dtype.optimizing.attempts.limits import LARGEST_RELATIVE
from safe_dtype.optimizing.nouns.record import Distance, Optimization, Stage
from safe_dtype.optimizing.report.plot import report_svg


def bars(record: Optimization) -> dict[str, tuple[list[float], float | None, float | None]]:
    """Return by row of the picture: the lengths of its bars, where its limit is, and the end of its time."""
    root = ET.fromstring(report_svg(record))
    name, rows = "", {}
    for one in root[1:]:
        tag = one.tag.rpartition("}")[2]
        if tag == "text" and one.get("text-anchor") == "end":
            name = str(one.text)
            rows[name] = ([], None, None)
        elif name and tag == "rect":
            left, width = float(one.attrib["x"]), float(one.attrib["width"])
            drifts, limit, time = rows[name]
            rows[name] = (
                (drifts, limit, width) if one.get("height") == "14" else ([*drifts, left + width], limit, time)
            )
        elif name and tag == "path":
            rows[name] = (rows[name][0], float(re.findall(r"M([\d.]+)", one.attrib["d"])[0]), rows[name][2])
    return rows


def test_picture() -> None:
    """A form within its limit has a bar that ends before the mark, and one beyond it a bar that passes it."""
    rows = bars(RECORD)
    assert list(rows) == ["0 eager float32", "▶ 1 regional bfloat16 (sdpa)", "2 torchscript float32, wrong"]
    (by_dtype, by_form), limit, time = rows["▶ 1 regional bfloat16 (sdpa)"]
    assert limit is not None
    assert FAST.stages[1].distance.relative < LARGEST_RELATIVE[BFLOAT16]
    assert by_form < by_dtype < limit, "1e-2, 1.4e-2 and 5e-2"
    (_, by_form), limit, no_time = rows["2 torchscript float32, wrong"]
    assert limit is not None
    assert by_form > limit
    assert no_time is None
    eager = rows["0 eager float32"][2]
    assert time is not None
    assert eager is not None
    assert time == pytest.approx(eager / 4, abs=0.1)


def test_drift_of_infinity() -> None:
    """An infinite distance is drawn at the edge, with its figure."""
    far = replace(WRONG, stages=(Stage("traced", Distance(float("inf"), float("inf"), -1.0), "other shapes"),))
    assert ">inf</text>" in report_svg(replace(RECORD, attempts=(far,), chosen=None))
