"""Gigabytes of weights per second turned into float16: ours against what torch has.

    python benchmarks/conversion.py            # one to two minutes

All ways take turns in one process, for weights N(0, 0.02) in bfloat16; the fastest turn of each counts, as the others
measure what else the machine did. Bytes are those that are read. "copy" is what memory allows: it converts nothing.
Ways that make their result anew pay for fresh pages; "copy into out" does not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from results_file import write_results
from torch import Tensor

from safe_dtype.numerics import as_half

Way = Callable[[], Any]


def _ways(source: Tensor, out: Tensor) -> dict[str, Way]:
    return {
        "copy into out": lambda: out.view(torch.bfloat16).copy_(source),
        "clone": source.clone,
        ".half()": source.half,
        ".float().half()": lambda: source.float().half(),
        "as_half": lambda: as_half(source),
    }


def measure(source: Tensor, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Time all ways in turn."""
    torch.set_num_threads(threads)
    ways = _ways(source, torch.zeros_like(source, dtype=torch.float16))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    return [
        {"way": name, "threads": threads, "gb_per_s": source.nbytes / min(took) / 1e9,
         "median_gb_per_s": source.nbytes / statistics.median(took) / 1e9}
        for name, took in seconds.items()
    ]  # fmt: skip


@click.command()
@click.option("--millions", default=32, show_default=True, help="Of weights.")
@click.option("--repeats", default=9, show_default=True)
def main(*, millions: int, repeats: int) -> None:
    """Time all of it, and write the table."""
    everyone = torch.get_num_threads()
    source = torch.randn(millions * 2**20, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    rows = []
    for threads in sorted({1, everyone}):
        rows += measure(source, threads, repeats)
    for row in rows:
        click.echo(
            f"{row['threads']} threads, {row['way']:24} {row['gb_per_s']:6.2f} GB/s, "
            f"median {row['median_gb_per_s']:5.2f}", err=True,
        )  # fmt: skip
    click.echo(write_results("conversion", {"weights": source.numel(), "rows": rows}))


if __name__ == "__main__":
    main()
