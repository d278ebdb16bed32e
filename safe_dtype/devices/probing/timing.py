"""How long a call takes on a device, also where other processes compete for the cores."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Call = Callable[[int], object]  # gets the number of the repeat
Clock = Callable[[Call, int, int], float]  # call, first number, how many -> seconds per call

_SHORTEST = 1e-3  # seconds; below it, timer and launch overheads show
_AGREE = 1.10  # the three fastest lie within a tenth of each other
_MOST = 50  # repeats
# Shares of the time for which threads waited for a core, and seconds. From the first on repeats are disturbed one and all;
# from the second on the fastest of them still tell most. Less happens on any machine: a thread that is kept from its core
# once waits for 3 ms.
_BUSY, _DISTURBED = (0.2, 0.02), (0.05, 5e-3)
_TICK = 1e-2  # seconds
_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")
_event: Callable[..., Any] = torch.cuda.Event  # untyped in torch


def seconds_per_call(call: Call, clock: Clock, allowance: float, known: float, *, too_slow: float = math.inf) -> float:
    """Time `call`, of which one run took `known`: the median of the three fastest repeats, in seconds.

    Repeats until three agree or `allowance` seconds are spent; where two took longer than `too_slow` seconds each, nobody
    needs it more exactly. What disturbs a repeat can only make it longer, so the
    fastest tell most (K-best: Bryant and O'Hallaron, "Computer Systems", on measuring time).
    """
    started = time.perf_counter()
    samples = [known]
    count = max(1, math.ceil(_SHORTEST / max(known, 1e-7)))
    while not _settled(samples) and len(samples) < _MOST and time.perf_counter() - started < allowance:
        samples.append(clock(call, 1 + count * len(samples), count))
        if min(samples) > too_slow:
            break
    fastest = sorted(samples)[:3]
    return fastest[(len(fastest) - 1) // 2]


def clock_of(device: torch.device) -> Clock:
    """Return the clock for `device`."""
    if device.type == "cpu":
        return by_wall
    return _by_events if device.type == "cuda" else _by_synchronizing


class Waiting:
    """Tells whether the threads of this process were kept from running since this was made."""

    def __init__(self) -> None:
        self._started, self._waited, self._stolen = time.perf_counter(), _seconds_waited(), _seconds_stolen()

    @property
    def busy(self) -> bool:
        """Whether they waited for a core for a fifth of the time, or other virtual machines had theirs for as long.

        Linux only: elsewhere nobody can tell.
        """
        return self._has_lost(*_BUSY)

    @property
    def disturbed(self) -> bool:
        """Whether they lost time at all."""
        return self._has_lost(*_DISTURBED)

    def _has_lost(self, share: float, least: float) -> bool:
        allowed = share * (time.perf_counter() - self._started)
        # What is stolen is told in hundredths of a second, of all cores together.
        stolen = (_seconds_stolen() - self._stolen) / torch.get_num_threads()
        return _seconds_waited() - self._waited > max(least, allowed) or stolen > max(least, _TICK, allowed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on the calling thread alone, so that `by_thread_time` sees all of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_wall(call: Call, first: int, count: int) -> float:
    """Time with the wall clock."""
    return _timed_by(time.perf_counter, call, first, count)


def by_thread_time(call: Call, first: int, count: int) -> float:
    """Time with the calling thread's own clock, which stands still while another process has the core."""
    return _timed_by(time.thread_time, call, first, count)


def _timed_by(now: Callable[[], float], call: Call, first: int, count: int) -> float:
    started = now()
    for number in range(first, first + count):
        call(number)
    return (now() - started) / count


def _by_events(call: Call, first: int, count: int) -> float:
    start, end = _event(enable_timing=True), _event(enable_timing=True)
    start.record()
    for number in range(first, first + count):
        call(number)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / count


def _by_synchronizing(call: Call, first: int, count: int) -> float:
    torch.accelerator.synchronize()
    started = time.perf_counter()
    for number in range(first, first + count):
        call(number)
    torch.accelerator.synchronize()
    return (time.perf_counter() - started) / count


def _settled(samples: list[float]) -> bool:
    fastest = sorted(samples)[:3]
    return len(fastest) == 3 and fastest[-1] <= fastest[0] * _AGREE


def _seconds_waited() -> float:
    """Return for how long the threads of this process were ready to run and had no core."""
    try:
        with os.scandir(_TASKS) as tasks:  # a thread that ends meanwhile raises, and leaves it open otherwise
            return sum(_waited(task.path) for task in tasks) / 1e9
    except OSError:  # not Linux, a kernel without schedstat, or a thread that ended meanwhile
        return 0.0


def _waited(task: str) -> int:
    # Time on the core, time waiting for one (both in nanoseconds), number of slices.
    return int(Path(task, "schedstat").read_text().split()[1])


def _seconds_stolen() -> float:
    """Return for how long the cores of this virtual machine were ready to run and others on its host had them."""
    try:
        # cpu, then user, nice, system, idle, iowait, irq, softirq, steal, in ticks of a hundredth of a second.
        return int(_STAT.read_text().split(maxsplit=9)[8]) * _TICK
    except (OSError, IndexError, ValueError):  # not Linux, or one that does not tell
        return 0.0
