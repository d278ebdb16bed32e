"""What a guard of training adds to whole steps of a real model in which nothing fails.

    python benchmarks/training_steps.py single             # 70 s; with unclipped, ranks, short, short_ranks
    python benchmarks/training_steps.py single --more      # another 70 s, to what results/training_steps_single.json has

One model is trained in one process (ranks: in two, under DistributedDataParallel and gloo, a thread each), in fours of steps:
two plain ones and two guarded ones, in each of the six orders equally often and these shuffled, so that neither what changes
slowly nor what a step leaves to the next counts for one of them. Of a four counts the ratio of its guarded steps to its plain ones, by the clock and by the time on a core of all threads of the
process. Given is the median of all ratios and the interval in which it lies with 95 %, by drawing the fours anew.

That interval is as wide as the machine is restless. What the guard itself takes is measured beside it, in the guarded steps: the
seconds between each call of its code and the return, whoever calls it, the vote with its wait for the other rank among them.

What a guard does to a step hangs on the model, not on the number of tokens. So the short parts have 16 tokens in a step in place
of 2,048: the same milliseconds, out of a step that is several times shorter, and as many times less of noise. Only what they are
in milliseconds can be held to a whole step.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import torch
import torch.distributed as dist
from results_file import RESULTS, write_results
from training import SHAPES, Training, start_ranks

from safe_dtype.training.settling import window_vote
from safe_dtype.training.window_attempt import WindowAttempt

PARTS = {  # whether gradients are clipped, and the shape of a step's tokens
    "single": (True, None),
    "unclipped": (False, None),
    "ranks": (True, None),
    "short": (True, (1, 16)),
    "short_ranks": (True, (1, 16)),
}
_CALLED = (
    "__enter__",
    "__exit__",
    "loss",
    "backward_ended",
    "norm",
    "step",
)  # of an attempt, by the loop and its user
_DRAWS = 4000


class OwnTime:
    """Seconds between calls of the guard's code and their returns: those inside of others count once."""

    def __init__(self) -> None:
        self.seconds = self.on_a_core = self.of_votes = 0.0
        self._depth = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the block."""
        self._depth += 1
        clock, core = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.perf_counter() - clock
                self.on_a_core += time.thread_time() - core

    def watch(self) -> None:
        """Count all calls from here on."""
        for name in _CALLED:
            setattr(WindowAttempt, name, self._counting(getattr(WindowAttempt, name)))
        votes: Any = window_vote
        votes.cast_vote = self._timed(votes.cast_vote)

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.counted():
                return original(*args, **kwargs)

        return call

    def _timed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.of_votes += time.perf_counter() - begin

        return call


class Steps(Training):
    """One model in training, with a clock."""

    def __init__(self, *, clips: bool, tokens: tuple[int, int] | None) -> None:
        super().__init__(is_guarded=True, clips=clips, tokens=tokens)
        self.own = OwnTime()
        self.own.watch()

    def plain(self) -> tuple[float, float]:
        """Make a step without a guard; return its seconds, and those on a core."""
        return self._timed(self._body)

    def guarded(self) -> tuple[float, float]:
        """Make one with it."""
        return self._timed(self._guarded)

    def _timed(self, body: Callable[[], None]) -> tuple[float, float]:
        clock, core = time.perf_counter(), time.process_time()
        body()
        return time.perf_counter() - clock, time.process_time() - core

    def _guarded(self) -> None:
        assert self.guard is not None
        attempts = self.guard.attempts()
        while True:
            with self.own.counted():
                attempt = next(attempts, None)
            if attempt is None:
                return
            with attempt:
                self._body()


def fours(seconds: float, part: str) -> dict[str, Any]:
    """Return all fours of steps in so many seconds, on this rank."""
    torch.set_num_threads(1 if dist.is_initialized() else 2)
    clips, tokens = PARTS[part]
    steps = Steps(clips=clips, tokens=tokens)
    for _ in range(2):
        steps.plain()
        steps.guarded()
    own = steps.own
    own.seconds = own.on_a_core = own.of_votes = 0.0
    end = time.perf_counter() + seconds
    rows: list[list[float]] = []
    while _goes_on(end):
        taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for is_guarded in _order(len(rows)):
            taken[is_guarded].append(steps.guarded() if is_guarded else steps.plain())
        rows.append([sum(column) for pair in taken.values() for column in zip(*pair, strict=True)])
    count = 2 * len(rows)
    return {
        "fours": rows,  # seconds and seconds on a core of two plain steps, and of two guarded ones
        "own": [own.seconds / count, own.on_a_core / count, own.of_votes / count],  # of one step
        "parameters": sum(p.numel() for p in steps.inner.parameters()),
        "threads": torch.get_num_threads(),
        "batch": steps.tokens.shape[0],
        "tokens": steps.tokens.shape[1],
    }


def _order(four: int) -> tuple[bool, ...]:
    """Return which steps of a four are guarded: each order once in six fours, the same on all ranks."""
    orders = sorted(set(itertools.permutations((False, False, True, True))))
    random.Random(four // len(orders)).shuffle(orders)
    return orders[four % len(orders)]


def _goes_on(end: float) -> bool:
    """Whether there is time for another four, on all ranks alike."""
    flag = torch.tensor(float(time.perf_counter() < end))
    if dist.is_initialized():
        dist.broadcast(flag, 0)
    return bool(flag)


def summed_up(runs: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Return what all runs together say, and the runs."""
    rows = [row for run in runs for row in run["fours"]]
    step = statistics.median(row[0] for row in rows) / 2
    own = [statistics.fmean(run["own"][place] for run in runs) for place in range(3)]
    return {
        **SHAPES, **{name: runs[0][name] for name in ("parameters", "threads", "batch", "tokens")}, "clips": PARTS[part][0],
        "fours": len(rows),
        "step_ms": round(1e3 * step, 1),
        "longer_ms": _interval([1e3 * (row[2] - row[0]) / 2 for row in rows]),
        "longer_percent": _interval([100 * (row[2] / row[0] - 1) for row in rows]),
        "more_on_a_core_percent": _interval([100 * (row[3] / row[1] - 1) for row in rows]),
        "own_ms": round(1e3 * own[0], 3), "own_percent": round(100 * own[0] / step, 3),
        "own_on_a_core_ms": round(1e3 * own[1], 3), "of_it_votes_ms": round(1e3 * own[2], 3),
        "runs": runs,
    }  # fmt: skip


def _interval(ratios: list[float]) -> dict[str, Any]:
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    low, high = medians[_DRAWS // 40], medians[-_DRAWS // 40 - 1]
    return {"median": round(statistics.median(ratios), 3), "interval_95": [round(low, 3), round(high, 3)]}


@click.command(help=__doc__)
@click.argument("part", type=click.Choice([*PARTS]))
@click.option("--seconds", default=70.0, show_default=True, help="Of steps.")
@click.option("--more", is_flag=True, help="Add to the result that is there.")
@click.option("--rank", is_flag=True, hidden=True)
def main(part: str, seconds: float, *, more: bool, rank: bool) -> None:
    """Measure one part."""
    if rank:
        dist.init_process_group("gloo")
        click.echo(json.dumps(fours(seconds, part)))
        dist.destroy_process_group()
        return
    if part.endswith("ranks"):
        run = start_ranks([sys.executable, __file__, part, "--seconds", str(seconds), "--rank"])
    else:
        run = fours(seconds, part)
    file = RESULTS / f"training_steps_{part}.json"
    before = json.loads(file.read_text(encoding="utf-8"))["figures"]["runs"] if more else []
    figures = summed_up([*before, run], part)
    click.echo(write_results(f"training_steps_{part}", figures))
    click.echo(json.dumps({name: value for name, value in figures.items() if name != "runs"}))


if __name__ == "__main__":
    main()
