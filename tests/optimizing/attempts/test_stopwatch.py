"""How long calls take."""

from __future__ import annotations

import time

from safe_dtype.optimizing.attempts.stopwatch import MOST_RUNS, TURN, WARM_UPS, in_turns, timed


def test_timed() -> None:
    """A call is timed from its start to its end."""
    assert 0.02 <= timed(lambda: time.sleep(0.02), "cpu") < 2.0


def test_turns() -> None:
    """After the warm-up, several calls of one kind follow one another, and the first of each turn is not counted."""
    calls: list[str] = []
    in_turns(lambda: calls.append("form"), lambda: calls.append("eager"), "cpu")
    assert calls[: 2 * WARM_UPS] == ["form", "eager"] * WARM_UPS
    turns = calls[2 * WARM_UPS :]
    assert turns[: 2 * (TURN + 1)] == ["form"] * (TURN + 1) + ["eager"] * (TURN + 1)
    assert len(turns) == 2 * (TURN + 1) * (MOST_RUNS // TURN), "so quick a call is repeated as often as any"


def test_medians() -> None:
    """Each kind has its own median, and the spread is a share of the form's."""
    form, eager, spread = in_turns(lambda: time.sleep(0.001), lambda: None, "cpu")
    assert form >= 0.001
    assert 0 < eager < 0.001
    assert spread >= 0
