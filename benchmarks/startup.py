"""Seconds that safe_dtype adds before anything is loaded: the cold probe, the warm one, and the command's help."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import click
from results_file import write_results

WIDTHS = ((3072, 1024), (151_936, 1024), (1024, 3072))  # Qwen3-0.6B's


def probe_once() -> dict[str, float]:
    """Return the seconds of `facts_of` in a process that has imported torch already: first call, then later ones.

    As `from_pretrained` asks it for a large checkpoint in bfloat16: with the other ways to multiply.
    """
    import torch

    torch.zeros(1)

    def seconds() -> float:
        started = time.perf_counter()
        from safe_dtype.devices import facts_of, routes_of
        from safe_dtype.facts import BFLOAT16

        facts_of("cpu", widths=WIDTHS, routes=routes_of(BFLOAT16, "cpu"))
        return time.perf_counter() - started

    first = seconds()
    return {"first": first, "later": statistics.median(seconds() for _ in range(20))}


def run_probe(cache: str) -> dict[str, float]:
    """Run `probe_once` in a new process with `cache` as the verdict folder."""
    done = subprocess.run(
        [sys.executable, __file__, "--child"], env=os.environ | {"SAFE_DTYPE_CACHE": cache},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def help_seconds() -> float:
    """Time `safe-dtype --help` as a user runs it."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "safe_dtype", "--help"], check=True, capture_output=True)
    return time.perf_counter() - started


@click.command()
@click.option("--repeats", default=7, show_default=True)
@click.option("--name", default="startup", show_default=True, help="Of the result file.")
def main(*, repeats: int, name: str) -> None:
    """Time each `repeats` times and write the medians."""
    cold, warm, later = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(run_probe(cache)["first"])
            again = run_probe(cache)
            warm.append(again["first"])
            later.append(again["later"])
    figures: dict[str, Any] = {
        "cold_probe_seconds": statistics.median(cold),
        "warm_first_call_in_a_process_seconds": statistics.median(warm),
        "warm_later_calls_seconds": statistics.median(later),
        "help_seconds": statistics.median(help_seconds() for _ in range(repeats)),
    }
    click.echo(figures, err=True)
    click.echo(write_results(name, figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.stdout.write(json.dumps(probe_once()) + "\n")
    else:
        main()
