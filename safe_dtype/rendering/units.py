"""Bytes, seconds and ratios as people read them."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Return `count` bytes in decimal units: 2.4e9 -> '2.4 GB'."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float) -> str:
    """Return `seconds` with a unit that keeps three digits: 0.0042 -> '4.2 ms'."""
    if seconds >= 1:
        return f"{seconds:,.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
