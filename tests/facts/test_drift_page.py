"""A drift in a notebook: the verdict, a bar for each output, and every figure that was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from safe_dtype import Drift
from safe_dtype.facts.drift_page import drift_figures

TOKENS = Drift("tokens", 512, 1.8e-6, 2.2e-5, 1.0, 0.004, 1.5e-4, perplexity_ratio=1.000012)


def bars_of(drift: Drift) -> list[tuple[str, float]]:
    """Return what each bar is about, and how long it is."""
    page = ElementTree.fromstring(drift._repr_html_().replace("<br>", "<br/>"))
    svg = "{http://www.w3.org/2000/svg}"
    rows = [row for row in page.iter(f"{svg}g") if row.get("class") == "row"]
    return [(row.findtext(f"{svg}title") or "", float(row.find(f"{svg}rect").attrib["width"])) for row in rows]


def test_within_the_limit() -> None:
    """A small drift says so, with its figures; what was not measured is left out."""
    page = TOKENS._repr_html_()
    assert "Drift of 512 tokens: within the usual limit of 0.02" in page
    assert "1.80e-06" in page
    assert "1.000012" in page
    assert "mIoU" not in page


def test_beyond_the_limit() -> None:
    """A large one gives the reason of the judge, and its bar crosses the line of the limit."""
    large = replace(TOKENS, kl_mean=0.5, kl_p99=2.0)
    assert "beyond the usual limit: " in large._repr_html_()
    ((_, small_width),) = bars_of(TOKENS)
    ((title, width),) = bars_of(large)
    assert title == "mean KL, nats 5.00e-01"
    assert width > small_width


def test_every_output_has_a_bar() -> None:
    """The other outputs have bars of their own, in their own units; a name that is HTML stays text."""
    boxes = Drift("values", 40, 0.0, 0.0, 1.0, 0.5, 0.3)
    drift = replace(TOKENS, heads=(("<boxes>", boxes), ("masks", replace(TOKENS, kind="pixels", miou=0.99))))
    assert [title for title, _ in bars_of(drift)] == [
        "mean KL, nats 1.80e-06", "relative RMS 3.00e-01", "1 - mIoU 1.00e-02",
    ]  # fmt: skip
    assert "<boxes>" not in drift._repr_html_()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_not_finite(value: float) -> None:
    """NaN and infinity are the longest bars."""
    ((_, width),) = bars_of(replace(TOKENS, kl_mean=value, kl_p99=value))
    assert width == 460


def test_figures_that_are_not_finite() -> None:
    """What is no number is said in words: a reader may take "inf" for a unit."""
    figures = dict(drift_figures(replace(TOKENS, max_abs=math.inf, perplexity_ratio=math.nan)))
    assert figures["largest difference"] == figures["perplexity ratio"] == "not finite"
    assert figures["mean KL, nats"] == "1.80e-06"
