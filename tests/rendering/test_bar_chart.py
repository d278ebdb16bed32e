"""Bars: as long as what they stand for, with an axis, marked ends and the figures in words."""

from __future__ import annotations

import re

import pytest

from safe_dtype.rendering.bar_chart import (
    ChartBar,
    ChartRow,
    Mark,
    bar_chart,
    even_steps,
    linear_axis,
    log_axis,
)
from safe_dtype.rendering.svg import LogScale

AXIS = linear_axis(8.0, "Time (seconds, linear scale)", [(0, "0 us"), (2, "2 s"), (4, "4 s")])


def test_a_bar_is_as_long_as_it_says() -> None:
    """Bars of a row begin and end where they are told to, in percent of the width."""
    row = ChartRow("a", (ChartBar(0, 25, 0), ChartBar(25, 62.5, 1)), "5 s")
    chart = bar_chart([row], ("prompt", "answer"), AXIS)
    assert re.findall(r"bar k(\d)\" style=\"left:([\d.]+)%;width:([\d.]+)%", chart) == [
        ("0", "0.00", "25.00"), ("1", "25.00", "37.50"),
    ]  # fmt: skip


def test_the_axis_has_its_name_its_unit_and_its_ticks() -> None:
    """The name says unit and kind of scale; ticks stand above and below."""
    chart = bar_chart([ChartRow("a", (ChartBar(0, 50, 0),), "4 s")], ("one",), AXIS)
    assert "Time (seconds, linear scale)" in chart
    assert chart.count('<span style="left:25.00%">2 s</span>') == 2
    assert chart.count('<span style="left:0.00%">0</span>') == 2


def test_powers_are_powers() -> None:
    """A logarithmic axis names base and exponent."""
    axis = log_axis(LogScale(2, 0, 16, 0, 100), "Size", step=8)
    assert axis.ticks == ((0.0, "2", "0"), (50.0, "2", "8"), (100.0, "2", "16"))
    assert '<span style="left:50.00%">2<sup>8</sup></span>' in bar_chart([ChartRow("a", (), "-")], (), axis)


def test_marks() -> None:
    """A mark is a line with words; what lies beyond the axis has words, and no line that would stand at a wrong place."""
    rows = [ChartRow("a", (ChartBar(0, 50, 0),), "4")]
    chart = bar_chart(rows, ("one",), AXIS, marks=(Mark(40, "the end"), Mark(100, "far", is_beyond=True)))
    assert chart.count('class="mark"') == 1
    assert ">the end<" in chart
    assert ">far<" in chart


def test_foreign_names_are_text() -> None:
    """A name, a figure, a title, a key and a mark bring no markup along."""
    evil = '"><script>'
    rows = [ChartRow(evil, (ChartBar(0, 50, 0),), evil, evil)]
    assert "<script" not in bar_chart(rows, (evil,), linear_axis(1, evil, [(1, evil)]), marks=(Mark(1, evil),))


def test_nothing_to_show() -> None:
    """Without rows there is no chart."""
    assert bar_chart([], ("one",), AXIS) == ""


@pytest.mark.parametrize(
    ("largest", "steps"),
    [(7.3, [0, 2, 4, 6]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.0042, [0, 0.001, 0.002, 0.003, 0.004]),
     (1.7e10, [0, 5e9, 1e10, 1.5e10]), (100, [0, 20, 40, 60, 80, 100])],
)  # fmt: skip
def test_even_steps(largest: float, steps: list[float]) -> None:
    """Ticks are round, and few."""
    assert even_steps(largest) == pytest.approx(steps)
