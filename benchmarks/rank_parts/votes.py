"""One rank of the measure of a vote: the time of many votes, in turn with gloo's own all_reduce."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from safe_dtype.ranks import Vote, cast_vote, current_world

ROUNDS, TIMES = 5, 100


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return what a table shows of many times, in microseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{percent}_us": round(cuts[percent - 1] * 1e6, 1) for percent in (50, 90, 99)}


def main() -> None:
    """Measure, and let rank 0 print."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = current_world()
    number = torch.zeros(1, dtype=torch.int64)
    ways: dict[str, Callable[[], object]] = {
        "vote": lambda: cast_vote(world, Vote.OK),
        "all_reduce": lambda: dist.all_reduce(number, op=dist.ReduceOp.MAX),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            for _ in range(20):
                way()
            for _ in range(TIMES):
                started = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - started)
    if dist.get_rank() == 0:
        figures: dict[str, Any] = {name: quantiles(seconds) for name, seconds in times.items()}
        cuts = statistics.quantiles(times["vote"], n=100)
        figures["vote_quantiles_us"] = [round(cut * 1e6, 1) for cut in cuts]
        json.dump(figures, sys.stdout)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
