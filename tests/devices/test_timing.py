"""How long a call takes: repeats until they agree, clocks, and what kept the threads from running."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from safe_dtype.devices.timing import seconds_per_call


@pytest.mark.parametrize(
    ("samples", "seconds"),
    [
        pytest.param([5.0, 5.0, 5.0], 5.0, id="all-agree"),
        pytest.param([9.0, 5.0, 9.0, 5.1, 9.0, 5.2, 1.0], 5.1, id="disturbed-ones-do-not-count"),
        pytest.param([9.0, 5.0, 5.2, 5.1], 5.1, id="median-of-the-three-fastest"),
    ],
)
def test_repeats(samples: list[float], seconds: float) -> None:
    """Repeats go on until the three fastest agree, and their median counts."""
    left = iter(samples)
    found = seconds_per_call(lambda _: None, lambda *_: next(left), allowance=60.0, known=next(left))
    assert found == seconds


def test_no_time_for_repeats() -> None:
    """Without time left, the run that is known counts."""
    assert seconds_per_call(lambda _: None, lambda *_: 1.0, allowance=0.0, known=7.0) == 7.0


def test_repeats_take_turns() -> None:
    """Every repeat has a number of its own, so that no weight is used twice in a row."""
    numbers: list[int] = []

    def clock(call: Callable[[int], object], first: int, count: int) -> float:
        numbers.extend(range(first, first + count))
        return 1.0 / len(numbers)

    seconds_per_call(lambda _: None, clock, allowance=60.0, known=1e-4)
    assert numbers == sorted(set(numbers))
