"""Whether training comes up again after a rank was killed: by `accelerate launch` as it is, and by `safe-dtype launch`.

Two processes on the CPU form a group, one of them is killed, and the launcher starts both anew. What counts is at which
attempt they have a group again; a launcher that has not ended within the limit counts as one that never does.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil
from results_file import RESULTS, write_results

RESTARTS = 3
ENDING = 45.0  # seconds: torch's launcher gives its workers 30 before it kills them
SCRIPT = """
import os, signal
from accelerate import Accelerator

accelerator = Accelerator()
assert accelerator.num_processes == 2
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
accelerator.wait_for_everyone()
if attempt == 0 and accelerator.process_index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
accelerator.wait_for_everyone()
accelerator.print(f"up again at attempt {attempt}")
accelerator.end_training()
"""
WAYS = {
    "accelerate launch": [
        "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend",
        "no", "--max_restarts", str(RESTARTS),
    ],
    "safe-dtype launch": ["safe_dtype", "launch", "--cpu", "--num_machines", "1"],
}  # fmt: skip


def attempt_of(way: str, script: Path, seconds: float) -> dict[str, Any]:
    """Return at which attempt the group was there again (None: never), and after how many seconds the job ended."""
    command = [sys.executable, "-m", *WAYS[way], "--num_processes", "2", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as launcher:
        try:
            printed, _ = launcher.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            printed = _ended(launcher)
    match = re.search(r"up again at attempt (\d)", printed)
    return {"attempt": int(match[1]) if match else None, "seconds": time.perf_counter() - started}


def _ended(launcher: subprocess.Popen[str]) -> str:
    """End a launcher and its workers, which are in sessions of their own; return what they had printed."""
    launcher.terminate()
    try:
        printed, _ = launcher.communicate(timeout=ENDING)
    except subprocess.TimeoutExpired:
        for process in (*psutil.Process(launcher.pid).children(recursive=True), launcher):
            process.kill()
        printed, _ = launcher.communicate()
    return printed


@click.command()
@click.option("--trials", default=10, show_default=True, help="Of each way.")
@click.option("--seconds", default=60.0, show_default=True, help="The limit of a trial.")
@click.option(
    "--way", "ways", multiple=True, type=click.Choice([*WAYS]), help="Only this one; others keep their figures."
)
@click.option("--name", default="restarts", show_default=True, help="Of the result file.")
def main(*, trials: int, seconds: float, ways: tuple[str, ...], name: str) -> None:
    """Count how many restarts come up, and at which attempt."""
    file = RESULTS / f"{name}.json"
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["figures"] if ways and file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "restarted.py"
        script.write_text(SCRIPT, encoding="utf-8")
        for way in ways or WAYS:
            outcomes = [attempt_of(way, script, seconds) for _ in range(trials)]
            attempts = [outcome["attempt"] for outcome in outcomes]
            figures[way] = {
                "trials": trials,
                "up_at_the_first_restart": attempts.count(1),
                "up_later": sum(attempt is not None and attempt > 1 for attempt in attempts),
                "never_up": attempts.count(None),
                "limit_seconds": seconds,
                "median_seconds": statistics.median(outcome["seconds"] for outcome in outcomes),
            }
            click.echo(f"{way}: {figures[way]}", err=True)
    click.echo(write_results(name, figures))


if __name__ == "__main__":
    main()
