"""Products of 1 to 16 rows on a CPU: compiled for it (safe_dtype.kernels), from blocks, and torch's own.

    python benchmarks/rows.py                      # 2 CPU settings, about a minute
    OMP_NUM_THREADS=1 python benchmarks/rows.py --name rows_one_thread

Weights take turns from a set larger than the caches, and the ways stand far from each other in it, so that none finds a
weight in the caches that another has just read. The ways take turns too, so that what disturbs one disturbs all: seconds
are the median of many turns, the ratio that of each turn's. Beside them stands how fast memory is read at most, by the sum
of 400 MB and by a product of as much.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from generation import CPUS, in_child
from results_file import write_results
from torch import Tensor

from safe_dtype.kernels.column_product import multiply_columns
from safe_dtype.kernels.row_product import multiply_rows
from safe_dtype.numerics import Blocks, product

SHAPES = ((3072, 1024), (1024, 3072), (1024, 1024), (151_936, 1024))
TURNED = ((768, 3072), (3072, 768))  # with a row for each input, as GPT-2's
ROWS = (1, 2, 4, 8, 16)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int8)
POOL = 2e8  # bytes of weights
TURNS, SECONDS = 30, 0.1
SETTINGS = ("bare", "avx2")

Call = Callable[[Tensor, int], Tensor]


def measure() -> list[dict[str, Any]]:
    """Time every way at every shape, dtype and number of rows."""
    figures = []
    for dtype in DTYPES:
        turned = () if dtype is torch.int8 else TURNED
        for shape in (*SHAPES, *turned):
            count = max(3, int(POOL / (dtype.itemsize * shape[0] * shape[1])))
            ways = _ways(dtype, shape, count) if shape in SHAPES else _ways_of_turned(dtype, shape, count)
            for rows in ROWS:
                inputs = shape[1] if shape in SHAPES else shape[0]
                x = torch.randn(rows, inputs).to(torch.bfloat16 if dtype is torch.int8 else dtype)
                seconds = _in_turn(ways, x, count)
                size = dtype.itemsize * shape[0] * shape[1]
                figures.append({
                    "dtype": str(dtype).removeprefix("torch."), "shape": shape, "rows": rows,
                    **{f"{way} GB/s": size / statistics.median(taken) / 1e9 for way, taken in seconds.items()},
                    "torch over compiled": _ratio(seconds["torch"], seconds["compiled"]),
                })  # fmt: skip
    return figures


def memory_gb_per_s() -> float:
    """Return how fast memory is read at most: by the sum of 400 MB, and by a product of as much."""
    numbers = torch.ones(50_000, 2048)
    x, taken = torch.ones(1, 2048), []
    reads: tuple[Callable[[], Tensor], ...] = (lambda: torch.sum(numbers), lambda: multiply_rows(x, numbers))
    for _ in range(10):
        for read in reads:
            started = time.perf_counter()
            read()
            taken.append(time.perf_counter() - started)
    return numbers.nbytes / min(taken) / 1e9


def _ways(dtype: torch.dtype, shape: tuple[int, int], count: int) -> dict[str, Call]:
    if dtype is torch.int8:
        codes = [torch.randint(-127, 128, shape, dtype=torch.int8) for _ in range(count)]
        scales = torch.rand(shape[0]).to(torch.bfloat16)
        return {
            "compiled": lambda x, turn: multiply_rows(x, codes[turn], None, scales),
            "torch": lambda x, turn: torch._weight_int8pack_mm(x, codes[turn], scales),
        }
    first = torch.randn(shape).mul_(0.02).to(dtype)
    weights = [first.clone() for _ in range(count)]
    ways: dict[str, Call] = {
        "compiled": lambda x, turn: multiply_rows(x, weights[turn]),
        "torch": lambda x, turn: F.linear(x, weights[turn]),
    }
    if dtype is not torch.float32:
        blocks = [Blocks.of(weight) for weight in weights]
        ways["blocks"] = lambda x, turn: product(x, blocks[turn])
    return ways


def _ways_of_turned(dtype: torch.dtype, shape: tuple[int, int], count: int) -> dict[str, Call]:
    first = torch.randn(shape).mul_(0.02).to(dtype)
    weights, bias = [first.clone() for _ in range(count)], torch.randn(shape[1]).to(dtype)
    return {
        "compiled": lambda x, turn: multiply_columns(x, weights[turn], bias),
        "torch": lambda x, turn: torch.addmm(bias, x, weights[turn]),
    }


def _in_turn(ways: dict[str, Call], x: Tensor, count: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {way: [] for way in ways}
    started = time.perf_counter()
    for turn in range(-2, TURNS):  # the first two load what is needed
        for number, (way, call) in enumerate(ways.items()):
            place = (turn + number * count // len(ways)) % count
            begun = time.perf_counter()
            call(x, place)
            if turn >= 0:
                taken[way].append(time.perf_counter() - begun)
        if turn >= 2 and time.perf_counter() - started > SECONDS:
            break
    return taken


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@click.command()
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), default=SETTINGS, show_default=True)
@click.option("--name", default="rows", show_default=True, help="Of the result file.")
def main(*, cpus: tuple[str, ...], name: str) -> None:
    """Time all of it, and write the table."""
    figures = {cpu: in_child(__file__, cpu) for cpu in cpus}
    for cpu, of_cpu in figures.items():
        click.echo(f"{cpu}, {of_cpu['threads']} threads: {of_cpu['memory GB/s']:.1f} GB/s of memory", err=True)
        for row in of_cpu["products"]:
            rates = ", ".join(f"{way} {value:.1f}" for way, value in row.items() if way.endswith("GB/s"))
            ratio = row["torch over compiled"]
            click.echo(f"{row['dtype']:9} {row['shape']!s:15} {row['rows']}: {rates}, x {ratio:.2f}", err=True)
    click.echo(write_results(name, figures))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        with torch.inference_mode():
            figures = {"threads": torch.get_num_threads(), "memory GB/s": memory_gb_per_s(), "products": measure()}
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        main()
