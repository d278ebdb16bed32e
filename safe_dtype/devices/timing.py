"""How long a call takes on a device, also where other processes compete for the cores."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Call = Callable[[int], object]  # gets the number of the repeat
Clock = Callable[[Call, int, int], float]  # call, first number, how many -> seconds per call

_SHORTEST = 1e-3  # seconds; below it, timer and launch overheads show
_AGREE = 1.10  # the three fastest lie within a tenth of each other
_MOST = 50  # repeats
# On a busy machine the threads of one OpenMP region wait for each other until the scheduler has run them all: 24 ms for
# a product of 1 ms, every time (2 threads, 2 cores, one busy neighbour). A thread that slept gets a core at once, so
# after a nap one short call runs undisturbed. 10 ms are not enough, 30 ms are (measured, Linux 6.18).
_NAP = 0.03
_NAPS = range(3, 7)
_BUSY = 0.1  # share of the time that our threads waited for a core
_TASKS = Path("/proc/self/task")
_event: Callable[..., Any] = torch.cuda.Event  # untyped in torch


def seconds_per_call(call: Call, clock: Clock, allowance: float) -> float:
    """Time `call`: the median of the three fastest repeats, in seconds.

    Repeats until three agree or `allowance` seconds are spent, and at least once. What disturbs a repeat can only make
    it longer, so the fastest tell most (K-best: Bryant and O'Hallaron, "Computer Systems", on measuring time).
    """
    started, waited = time.perf_counter(), seconds_waited()
    samples = [clock(call, 0, 1)]
    count = max(1, math.ceil(_SHORTEST / max(samples[0], 1e-7)))
    while not _settled(samples) and len(samples) < _MOST and time.perf_counter() - started < allowance:
        samples.append(clock(call, 1 + count * len(samples), count))
    elapsed = time.perf_counter() - started
    if seconds_waited() - waited > _BUSY * elapsed:
        _after_naps(samples, call, clock)
    return sorted(samples)[:3][len(samples[:3]) // 2]


def seconds_waited() -> float:
    """Return for how long the threads of this process were ready to run and had no core. Linux only, else 0."""
    try:
        return sum(_waited(Path(task.path)) for task in os.scandir(_TASKS))
    except OSError:  # not Linux, a kernel without schedstat, or a thread that ended meanwhile
        return 0.0


def clock_of(device: torch.device) -> Clock:
    """Return the clock for `device`."""
    if device.type == "cpu":
        return _by_wall
    return _by_events if device.type == "cuda" else _by_synchronizing


def _after_naps(samples: list[float], call: Call, clock: Clock) -> None:
    for nap in range(_NAPS.stop):
        if nap >= _NAPS.start and _settled(samples):
            return
        time.sleep(_NAP)
        samples.append(clock(call, nap, 1))


def _settled(samples: list[float]) -> bool:
    fastest = sorted(samples)[:3]
    return len(fastest) == 3 and fastest[-1] <= fastest[0] * _AGREE


def _waited(task: Path) -> float:
    # "time on the core, time waiting for one, slices", in nanoseconds
    return int((task / "schedstat").read_text().split()[1]) / 1e9


def _by_wall(call: Call, first: int, count: int) -> float:
    started = time.perf_counter()
    for number in range(first, first + count):
        call(number)
    return (time.perf_counter() - started) / count


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
