"""GB/s of `safe_dtype.checkpoints.audit.audit_weights`, beside reading the same pages once, and beside torch's conversion.

The files are in the system's cache. All ways take turns in one process, and the fastest turn of each counts; torch's
way is timed on one tensor of each file, and its counts are compared on all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from results_file import write_results
from safetensors import safe_open
from safetensors.torch import save_file

from safe_dtype.checkpoints import audit
from safe_dtype.checkpoints.audit.audit_weights import Audit

_ROWS, _COLUMNS = 4096, 4096  # of a tensor


def make_checkpoint(folder: Path, gigabytes: float, dtype: torch.dtype) -> list[Path]:
    """Save normally distributed weights of about this size in two shards."""
    torch.manual_seed(0)
    tensor = (torch.randn(_ROWS, _COLUMNS) * 0.02).to(dtype)
    count = max(1, round(gigabytes * 1e9 / tensor.nbytes / 2))
    files = [folder / f"model-0000{shard}-of-00002.safetensors" for shard in (1, 2)]
    index: dict[str, str] = {}
    for shard, file in enumerate(files):
        names = [f"layers.{shard * count + one}.weight" for one in range(count)]
        save_file({name: tensor.clone() for name in names}, file)
        index |= dict.fromkeys(names, file.name)
    listed = ", ".join(f'"{name}": "{file}"' for name, file in index.items())
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{listed}}}}}')
    return files


def read_once(files: list[Path]) -> None:
    """Look at every byte once: what the fastest audit could take."""
    for file in files:
        np.memmap(file, np.uint8, mode="r")[: file.stat().st_size // 8 * 8].view(np.uint64).max()


def convert_with_torch(files: list[Path], most: int) -> dict[str, float]:
    """Count the same with torch's own conversion, a tensor at a time, of at most so many tensors of each file."""
    overflowing = inexact = vanishing = 0
    largest = 0.0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in list(opened.keys())[:most]:
                weights = opened.get_tensor(name)
                half = weights.half()
                finite, stays = weights.isfinite(), half.isfinite()
                overflowing += int((finite & ~stays).sum())
                inexact += int((stays & (half.to(weights.dtype) != weights)).sum())
                vanishing += int(((half == 0) & (weights != 0)).sum())
                largest = max(largest, float(weights[finite].abs().max()))
    return {"overflowing": overflowing, "inexact": inexact, "vanishing": vanishing, "largest": largest}


def time_all(folder: Path, files: list[Path], dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Return the GB/s of each way, in the fastest of `repeats` turns."""
    size = sum(file.stat().st_size for file in files)
    first = len(files) * _ROWS * _COLUMNS * dtype.itemsize  # one tensor of each file: torch takes its time
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "read_once": (size, lambda: read_once(files)),
        "audit_1_thread": (size, lambda: audit(folder, threads=1)),
        "audit_2_threads": (size, lambda: audit(folder, threads=2)),
        "torch_1_thread": (first, lambda: convert_with_torch(files, 1)),
    }
    rates = dict.fromkeys(ways, 0.0)
    for _ in range(repeats):
        for name, (filled, way) in ways.items():
            started = time.perf_counter()
            way()
            rates[name] = max(rates[name], filled / 1e9 / (time.perf_counter() - started))
    return {name: round(rate, 2) for name, rate in rates.items()}


def same(found: Audit, by_torch: dict[str, float]) -> bool:
    """Whether the audit and torch count the same."""
    return all(getattr(found.total, name) == count for name, count in by_torch.items())


@click.command()
@click.option("--gigabytes", default=1.0, show_default=True)
@click.option("--repeats", default=15, show_default=True)
@click.option("--name", default="audit", show_default=True, help="Of the result file.")
def main(*, gigabytes: float, repeats: int, name: str) -> None:
    """Time all ways on bfloat16 and on float32 weights, and write GB/s."""
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        with tempfile.TemporaryDirectory() as folder:
            files = make_checkpoint(Path(folder), gigabytes, dtype)
            row: dict[str, Any] = {
                "dtype": str(dtype).removeprefix("torch."),
                "gigabytes": round(sum(file.stat().st_size for file in files) / 1e9, 3),
                "same_counts_as_torch": same(audit(folder), convert_with_torch(files, 1000)),
                "gb_per_s": time_all(Path(folder), files, dtype, repeats),
            }
        rows.append(row)
        click.echo(row, err=True)
    click.echo(write_results(name, {"repeats": repeats, "rows": rows}))


if __name__ == "__main__":
    main()
