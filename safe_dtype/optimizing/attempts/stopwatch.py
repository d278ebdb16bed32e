"""How long calls take. Two kinds of calls take turns, so that a busy machine slows both of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

WARM_UPS = 3
TURN = 5  # calls
LEAST_RUNS = 10
ENOUGH_SECONDS = 2.0  # of both kinds together: quick models are run more often than LEAST_RUNS
MOST_RUNS = 200


def timed(call: Callable[[], object], device: str) -> float:
    """Return the seconds of one call, until the device has finished it."""
    _wait_for(device)
    start = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - start


def in_turns(form: Callable[[], object], eager: Callable[[], object], device: str) -> tuple[float, float, float]:
    """Return the median seconds of `form` and of `eager`, and the interquartile range of `form` over its median.

    Several calls of one kind make a turn, and the first of each is not counted: the threads of the other kind may still be
    spinning. Those of onnxruntime made every other call of torch take twice as long where calls alternated singly.
    """
    for _ in range(WARM_UPS):
        form()
        eager()
    forms: list[float] = []
    eagers: list[float] = []
    while len(forms) < LEAST_RUNS or (sum(forms) + sum(eagers) < ENOUGH_SECONDS and len(forms) < MOST_RUNS):
        for call, seconds in ((form, forms), (eager, eagers)):
            call()
            seconds += [timed(call, device) for _ in range(TURN)]
    low, median, high = statistics.quantiles(forms, n=4)
    return median, statistics.median(eagers), (high - low) / median


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize(torch.device(device))
