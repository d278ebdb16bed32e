"""The range of every layer beside the ends of the dtypes."""

from __future__ import annotations

import math
import re

from safe_dtype.facts.activation_chart import HOW_TO_READ, activation_chart

KEYS = ("as saved", "rescaled")


def bars(chart: str) -> list[float]:
    """Return the length of every bar, in percent of the axis."""
    return [float(width) for width in re.findall(r"class=\"bar k\d\" style=\"left:0.00%;width:([\d.]+)%", chart)]


def line(chart: str) -> list[float]:
    """Return where the lines of the dtypes' ends are."""
    return [float(place) for place in re.findall(r"class=\"mark\" style=\"left:([\d.]+)%", chart)]


def test_float16_ends_between_what_fits_and_what_does_not() -> None:
    """A bar beyond 65,504 crosses float16's line, and a rescaled one does not."""
    chart = activation_chart([("model.layers.0", 70_000.0, 273.0), ("model.layers.1", 65_000.0, 449.0)], KEYS)
    float16, float8 = line(chart)
    assert bars(chart)[0] > float16 > bars(chart)[2] > bars(chart)[3] > float8 > bars(chart)[1]
    assert "float16 ends at 65,504" in chart
    assert "bfloat16 and float32 end at 3.4e38" in chart


def test_names_are_as_short_as_they_can_be() -> None:
    """What all layers are called stands once, in the name of the axis; the whole name is in the title."""
    peaks = [(f"model.layers.{number}.mlp", 1.0, 1.0) for number in range(126)]
    chart = activation_chart(peaks, KEYS)
    assert 'title="model.layers.125.mlp: as saved 1, rescaled 1">125</div>' in chart
    assert "Largest |number| of model.layers.*.mlp" in chart
    assert chart.count('class="name"') == 126


def test_names_that_share_no_part() -> None:
    """Names are not cut amid a part, nor away."""
    chart = activation_chart([("encoder.1", 1.0, 1.0), ("encode", 2.0, 1.0)], KEYS)
    assert ">encoder.1</div>" in chart
    assert ">encode</div>" in chart


def test_numbers_of_any_size() -> None:
    """The axis grows with what is on it, up to where float32 ends; what is not finite is said to be so."""
    chart = activation_chart([("a", 1e30, 1e-6), ("b", math.inf, math.nan), ("c", 0.0, 0.0)], KEYS)
    assert max(bars(chart)) == 100
    assert "not finite" in chart
    assert 3 <= chart.count("<sup>") / 2 <= 10
    assert activation_chart([], KEYS) == ""


def test_what_no_layer_hands_on() -> None:
    """The largest number anywhere has a row of its own, before those of the layers, and on the same axis."""
    inside = ("anywhere inside", 401_000.0, 1570.0)
    chart = activation_chart([("layers.0", 20.0, 20.0), ("layers.1", 27.0, 27.0)], KEYS, inside=inside)
    names = re.findall(r"class=\"name\"[^>]*>([^<]+)<", chart)
    assert names == ["anywhere inside", "0", "1"]
    assert bars(chart)[0] > line(chart)[0] > bars(chart)[1]
    assert activation_chart([], KEYS, inside=inside) == ""


def test_it_is_explained() -> None:
    """The words say what 2^-17 is, and what a logarithmic scale is."""
    words = " ".join(HOW_TO_READ)
    assert f"2^-17 is 1/{2**17:,}" in words
    assert "logarithmic" in words
