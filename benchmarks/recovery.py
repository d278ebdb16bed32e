"""What a failing dtype costs a training of two ranks: cured in place, and by a restart with a verdict.

Rank 1 has no kernel for bfloat16 at step 25 of 40, and a checkpoint is written every 10 steps. In place, the guard votes and
both ranks run that step again in the next dtype. A plain loop ends, with statuses 75 and 76, and `safe-dtype launch` starts
it again: it comes up in the next dtype at its last checkpoint. The seconds are those from the failure to the end of the step
in which it occurred, less one step; the steps are those that were run again.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from recovery_job import FAILING_STEP
from results_file import write_results

JOB = Path(__file__).with_name("recovery_job.py")
WAYS = ("in place", "restart")
LIMIT = 180  # seconds


def recovery_of(way: str) -> dict[str, Any]:
    """Return what one failure costs: seconds, steps that were run again, and restarts.

    Raises:
        RuntimeError: If the job does not end well.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            sys.executable, "-m", "safe_dtype", "launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
            "--mixed_precision", "bf16", str(JOB),
        ]  # fmt: skip
        environment = {
            **os.environ, "WAY": way, "JOB_FOLDER": name, "SAFE_DTYPE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
        if job.returncode:
            raise RuntimeError(f"{way}: the job ended with status {job.returncode}\n{job.stderr[-4000:]}")
        return _cost(*((folder / f"rank {rank}").read_text(encoding="utf-8").splitlines() for rank in range(2)))


def _cost(first: list[str], second: list[str]) -> dict[str, Any]:
    """Return the cost from what the ranks noted: what, step, time, attempt."""
    ends = [(int(step), float(time), int(attempt)) for _, step, time, attempt in map(str.split, first)]
    failed = next(float(line.split()[2]) for line in second if line.startswith("failed"))
    seconds_of_step = statistics.median(
        after[1] - before[1] for before, after in pairwise(ends) if before[2] == after[2] and after[0] != FAILING_STEP
    )
    through = next(time for step, time, _ in ends if step == FAILING_STEP)
    return {
        "seconds": through - failed - seconds_of_step,
        "seconds_of_a_step": seconds_of_step,
        # The failing step itself runs twice in either way.
        "steps_again": 1 + len(ends) - len({step for step, _, _ in ends}),
        "restarts": max(attempt for _, _, attempt in ends),
    }


@click.command()
@click.option("--trials", default=5, show_default=True, help="Of each way.")
@click.option("--name", default="recovery", show_default=True, help="Of the result file.")
def main(*, trials: int, name: str) -> None:
    """Measure both ways, one after the other."""
    figures: dict[str, Any] = {}
    for way in WAYS:
        costs = [recovery_of(way) for _ in range(trials)]
        figures[way] = {
            "trials": trials,
            **{key: statistics.median(cost[key] for cost in costs) for key in costs[0]},
            "most_seconds": max(cost["seconds"] for cost in costs),
        }
        click.echo(f"{way}: {figures[way]}", err=True)
    click.echo(write_results(name, figures))


if __name__ == "__main__":
    main()
