"""The page of an optimization: what was reached, drift and time of every form, and no foreign markup."""

from __future__ import annotations

import html
import math
from dataclasses import replace

from one_file import loads_nothing
from optimizing.recorded import RECORD, WRONG

from safe_dtype.optimizing.nouns.record import Distance, Stage, Status
from safe_dtype.optimizing.report.report_page import report_page

EVIL = "<script>alert(1)</script>"


def test_what_a_reader_looks_for() -> None:
    """The verdict first; then time and drift with their scales, every attempt with its reason, and how to use it."""
    page = report_page(RECORD)
    loads_nothing(page)
    words = html.unescape(page)
    for expected in (
        "Fell back.", "eager in float32 is 1 (linear scale", "logarithmic, powers of ten", "chosen", "onnx not installed",
        "load_optimized", "safe-dtype optimize", "12.3 s",
    ):  # fmt: skip
        assert expected in words
    assert words.index("Fell back.") < words.index("linear scale")


def test_foreign_names_are_text() -> None:
    """A model called <script> is text, and so are the reasons of attempts."""
    attempts = tuple(replace(one, reason=EVIL, remedies=(EVIL,)) for one in RECORD.attempts)
    page = report_page(replace(RECORD, source=EVIL, model_class=EVIL, why=EVIL, attempts=attempts))
    loads_nothing(page)
    assert "<script" not in page


def test_nothing_passed() -> None:
    """Without an attempt there is no picture, and nothing to load."""
    page = report_page(replace(RECORD, attempts=(), dtypes=(), chosen=None, status=Status.NO_DTYPE, why=""))
    loads_nothing(page)
    assert "There is no form to load" in page
    assert 'class="chart"' not in page


def test_an_error_that_is_not_finite() -> None:
    """A form that gives NaN is said to be off by no number."""
    far = replace(WRONG, stages=(Stage("traced", Distance(math.inf, math.inf, -1.0), "other shapes"),))
    page = report_page(replace(RECORD, attempts=(far,), chosen=None))
    assert ">not finite</td>" in page
    assert ">inf<" not in page
