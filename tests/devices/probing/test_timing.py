"""How long a call takes: repeats until they agree, clocks, and what kept the threads from running."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from safe_dtype.devices.probing import timing
from safe_dtype.devices.probing.timing import (
    Waiting,
    by_thread_time,
    by_wall,
    clock_of,
    one_thread,
    seconds_per_call,
)


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


@pytest.mark.parametrize(
    ("samples", "too_slow", "seconds", "made"),
    [
        pytest.param([9.0, 8.0, 5.0, 5.0, 5.0], 7.0, 8.0, 2, id="far-too-slow"),
        pytest.param([9.0, 5.0, 5.0, 5.0], 7.0, 5.0, 4, id="the-first-was-disturbed"),
    ],
)
def test_what_is_too_slow_is_not_repeated(samples: list[float], too_slow: float, seconds: float, made: int) -> None:
    """Two repeats are enough to tell that something is out of the question, and the faster of them counts."""
    left = iter(samples)
    known = next(left)
    assert seconds_per_call(lambda _: None, lambda *_: next(left), 60.0, known, too_slow=too_slow) == seconds
    assert len(list(left)) == len(samples) - made


def test_repeats_take_turns() -> None:
    """Every repeat has a number of its own, so that no weight is used twice in a row."""
    numbers: list[int] = []

    def clock(call: Callable[[int], object], first: int, count: int) -> float:
        numbers.extend(range(first, first + count))
        return 1.0 / len(numbers)

    seconds_per_call(lambda _: None, clock, allowance=60.0, known=1e-4)
    assert numbers == sorted(set(numbers))


def test_clocks_count_every_call() -> None:
    """A clock calls so often, with numbers that go on from the first, and gives the seconds of one call."""
    for clock in (by_wall, by_thread_time, clock_of(torch.device("cpu"))):
        numbers: list[int] = []
        assert 0 <= clock(numbers.append, 3, 4) < 1
        assert numbers == [3, 4, 5, 6]


def test_what_a_clock_sees() -> None:
    """Sleep is time by the wall, and none of the thread's own."""
    assert by_wall(lambda _: time.sleep(0.02), 0, 2) >= 0.02
    assert by_thread_time(lambda _: time.sleep(0.02), 0, 2) < 0.01


def test_one_thread() -> None:
    """Inside one thread computes; afterwards as many as before, after an error too."""
    before = torch.get_num_threads()
    with contextlib.suppress(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("stolen", "busy"), [(0, False), (500, True)], ids=["own-cores", "stolen-cores"])
def test_other_virtual_machines(stolen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, busy: bool) -> None:
    """What the host gave to others is as bad as what others of this machine took; a system that does not tell is quiet."""
    file = tmp_path / "stat"
    monkeypatch.setattr(timing, "_STAT", file)
    monkeypatch.setattr(timing, "_seconds_waited", lambda: 0.0)
    assert not Waiting().busy
    file.write_text("cpu  11 9 15 13 13 0 12 1000 0 0\ncpu0 1 2\n")
    waiting = Waiting()
    file.write_text(f"cpu  11 9 15 13 13 0 12 {1000 + stolen} 0 0\ncpu0 1 2\n")
    assert waiting.busy is busy


@pytest.mark.parametrize(
    ("waited", "took", "busy", "disturbed"),
    [
        pytest.param(0.004, 0.01, False, False, id="once-kept-from-a-core"),
        pytest.param(0.008, 0.02, False, True, id="twice"),
        pytest.param(0.01, 0.3, False, False, id="seldom"),
        pytest.param(0.03, 0.3, False, True, id="now-and-then"),
        pytest.param(0.1, 0.3, True, True, id="for-a-third"),
    ],
)
def test_waiting_for_a_core(
    waited: float, took: float, monkeypatch: pytest.MonkeyPatch, *, busy: bool, disturbed: bool
) -> None:
    """Threads that wait for a fifth of the time are on a busy machine; less disturbs, and a few milliseconds nobody."""
    clock, total = [5.0], [1.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(timing, "_seconds_waited", lambda: total[0])
    monkeypatch.setattr(timing, "_seconds_stolen", lambda: 0.0)
    waiting = Waiting()
    clock[0] += took
    total[0] += waited
    assert (waiting.busy, waiting.disturbed) == (busy, disturbed)
