"""Bytes and seconds as people read them."""

from __future__ import annotations

import pytest

from safe_dtype.rendering.units import age_text, bytes_text, digits_text, longer_text, seconds_text, size_text


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (2.4e9, "2.4 GB"),
        (123_456_789, "123 MB"),
        (5.5e12, "5.5 TB"),
        (999_999, "1 MB"),
        (999_499, "999 kB"),
        (1.2345e15, "1,230 TB"),
    ],
)
def test_bytes(count: float, words: str) -> None:
    """Decimal units, three digits."""
    assert bytes_text(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0042, "4.2 ms"),
        (4.2e-6, "4.2 us"),
        (0.001, "1 ms"),
        (1, "1 s"),
        (12.345, "12.3 s"),
        (12_345, "12,345 s"),
        (999.9, "1,000 s"),
        (0.9999, "1 s"),
        (0.0009999, "1 ms"),
        (0, "0 us"),
    ],
)
def test_seconds(seconds: float, words: str) -> None:
    """The unit that keeps three digits."""
    assert seconds_text(seconds) == words


@pytest.mark.parametrize(
    ("number", "digits", "words"),
    [(65_432.0, 3, "65,400"), (0.01234, 3, "0.0123"), (999.9, 3, "1,000"), (1234.5, 4, "1,234"), (0, 3, "0")],
)
def test_digits(number: float, digits: int, words: str) -> None:
    """So many digits, and no power of ten where a large number can be written out."""
    assert digits_text(number, digits) == words


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "as long"), (1.004, "as long"), (1.13, "13 % longer"), (1.6, "1.6 times as long"),
        (9.96, "10 times as long"), (123.4, "123 times as long"), (12345.0, "12,345 times as long"),
    ],
)  # fmt: skip
def test_longer_text(ratio: float, text: str) -> None:
    """A small difference is a percentage, a large one a factor, and none says so."""
    assert longer_text(ratio) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.0, "now"), (60.0, "1 minute"), (7199.0, "1 hour"), (90_000.0, "1 day"), (4e6, "46 days")],
)
def test_age_text(seconds: float, text: str) -> None:
    """How long ago something was, in its largest unit."""
    assert age_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (60.2, "60.2"),
        (422_345, "422,000"),
        (99_999, "100,000"),
        (3.1e7, "31,000,000"),
        (3.4e38, "3.4e38"),
        (2e-5, "2e-05"),
        (float("inf"), "infinity"),
    ],
)
def test_sizes(size: float, words: str) -> None:
    """How large a number of a model is: no power of ten where people write none."""
    assert size_text(size) == words
