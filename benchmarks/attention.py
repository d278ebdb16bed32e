"""One row of attention behind a cache in 16 bit, in each of the forms that there are for it.

    python benchmarks/attention.py           # about a minute; "compiled" where llvmlite is installed

As asked: heads that share keys and values are named as such, as transformers does without a mask. By rows: the heads of a
group as rows of one head. In float32: the same from copies. Compiled: `safe_dtype.kernels.attention_row`. All forms in turn,
the minimum of several; errors against float64, and that of rounding alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from results_file import write_results

from safe_dtype.kernels.attention_row import attend, can_attend

SHAPES = ((16, 8, 128), (16, 16, 64), (32, 8, 128))  # heads, those that are shared, width
POSITIONS = (32, 128, 512, 2048)
DTYPES = (torch.bfloat16, torch.float16)
ROUNDS, CALLS = 8, 3


def forms(query: Any, key: Any, value: Any) -> dict[str, Callable[[], Any]]:
    """Return what computes the same in each form."""
    heads, shared, width = query.shape[1], key.shape[1], query.shape[3]
    rows = query.reshape(1, shared, heads // shared, width)
    attention = F.scaled_dot_product_attention
    named: dict[str, Callable[[], Any]] = {
        "as_asked": lambda: attention(query, key, value, enable_gqa=heads != shared),
        "by_rows": lambda: attention(rows, key, value),
        "in_float32": lambda: attention(rows.float(), key.float(), value.float()).to(query.dtype),
    }
    if can_attend(query, key, value):
        named["compiled"] = lambda: attend(query, key, value, width**-0.5)
    return named


def measured(heads: int, shared: int, width: int, positions: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the microseconds of each form, and how far its result is from float64, relative."""
    torch.manual_seed(0)
    query = torch.randn(1, heads, 1, width).to(dtype)
    key, value = (torch.randn(1, shared, positions, width).to(dtype) for _ in range(2))
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), enable_gqa=True)
    named = forms(query, key, value)
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(ROUNDS):
        for name, form in named.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                form()
            seconds[name].append((time.perf_counter() - begin) / CALLS)
    errors = {name: _error(form(), exact) for name, form in named.items()}
    return {
        "dtype": str(dtype).removeprefix("torch."), "heads": heads, "shared": shared, "width": width,
        "positions": positions, "microseconds": {name: round(1e6 * min(taken), 1) for name, taken in seconds.items()},
        "errors": {**errors, "rounded": _error(exact.to(dtype), exact)},
    }  # fmt: skip


def _error(result: torch.Tensor, exact: torch.Tensor) -> float:
    difference = result.double().reshape(exact.shape) - exact
    return float(f"{float(difference.norm() / exact.norm()):.2e}")


def main(cpu: str = "bare") -> None:
    """Measure every cell and write the result file."""
    rows = []
    for dtype in DTYPES:
        for shape in SHAPES:
            for positions in POSITIONS:
                rows.append(measured(*shape, positions, dtype))
                click.echo(rows[-1], err=True)
    load = max(0.0, round(os.getloadavg()[0] - torch.get_num_threads(), 1))
    figures = {"cpu": cpu, "threads": torch.get_num_threads(), "load_of_others": load, "rows": rows}
    write_results(f"attention_{cpu}", figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
