"""Bytes, seconds and ratios as people read them."""

from __future__ import annotations

import math


def digits_text(number: float, digits: int = 3) -> str:
    """Return a number in so many digits, with all of those before the point: 0.01234 -> '0.0123', 65432 -> '65,400'."""
    rounded = float(f"{number:.{digits}g}")
    return f"{rounded:,.{digits}g}" if abs(rounded) < 10**digits else f"{rounded:,.0f}"


def size_text(size: float) -> str:
    """Return how large a number of a model is, in three digits: 451234.0 -> '451,000', 1.7e38 -> '1.7e38'."""
    if math.isinf(size):
        return "infinity"
    return digits_text(size) if 1e-3 <= abs(size) < 1e10 else f"{size:.3g}".replace("e+", "e")


def bytes_text(count: float) -> str:
    """Return `count` bytes in decimal units: 2.4e9 -> '2.4 GB', and 999,999 -> '1 MB'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if float(f"{count / size:.3g}") >= 1:
            return f"{digits_text(count / size)} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float) -> str:
    """Return `seconds` with a unit that keeps three digits: 0.0042 -> '4.2 ms'."""
    if float(f"{seconds:.3g}") >= 1:
        return f"{seconds:.3g} s" if float(f"{seconds:.3g}") < 1000 else f"{seconds:,.0f} s"
    return f"{seconds * 1e3:.3g} ms" if float(f"{seconds:.3g}") >= 1e-3 else f"{seconds * 1e6:.3g} us"


def longer_text(ratio: float) -> str:
    """Return how much longer something takes, for a ratio of at least 1: 1.13 -> '13 % longer', 2.14 -> '2.1 times as long'."""
    percent = round((ratio - 1) * 100)
    if percent < 1:
        return "as long"
    return f"{percent} % longer" if percent < 50 else f"{times_text(ratio)} as long"


def times_text(ratio: float) -> str:
    """Return a ratio in two digits, and all digits before the point: 0.413 -> '0.41 times', 123.4 -> '123 times'."""
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def age_text(seconds: float) -> str:
    """Return how long ago something was, in its largest unit: 90000.0 -> '1 day'."""
    for name, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'s' * (count != 1)}"
    return "now"
