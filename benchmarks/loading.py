"""Time and peak memory of loading a four-shard checkpoint: plain transformers against safe_dtype, same dtype.

The two take turns, each time in a new process with warm file pages and warm verdicts; the ratio of medians counts.

    python benchmarks/loading.py --later --name loading_later [--folder FOLDER]

Later loads of one process instead, in turns as well, of a checkpoint of Qwen3-0.6B's shape as it was saved: by the clock, and
in seconds of the processor, which a busy machine changes less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import generation
from results_file import write_results


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """Save a random bf16 Qwen3 of about this size in four shards."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    layer_bytes = 2 * (3 * 1024 * 3072 + 2 * 2048 * 1024 + 2 * 1024 * 1024)
    config = Qwen3Config(
        vocab_size=32_000, hidden_size=1024, intermediate_size=3072, dtype="bfloat16",
        num_hidden_layers=round(gigabytes * 1e9 / layer_bytes), num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=int(model.num_parameters() * 2 / 3.9))


def time_load(folder: str, loader: str, dtype: str) -> dict[str, Any]:
    """Load once in this process and return seconds and the peak of resident memory in bytes."""
    import resource

    import transformers

    from safe_dtype import SafeAutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()
    plain = transformers.AutoModelForCausalLM
    started = time.perf_counter()
    if loader == "transformers":
        model = plain.from_pretrained(folder, dtype=dtype)
    elif dtype == "auto":
        model = SafeAutoModelForCausalLM.from_pretrained(folder)
    else:
        model = SafeAutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def later_loads(folder: str, repeats: str) -> dict[str, Any]:
    """Load in turns in this process, after each has loaded once; return the medians of both, and their ratios."""
    import gc

    import transformers

    from safe_dtype import SafeAutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()

    def seconds(load: Any) -> tuple[float, float]:
        gc.collect()
        wall, processor = time.perf_counter(), time.process_time()
        model = load()
        spent = time.perf_counter() - wall, time.process_time() - processor
        del model
        return spent

    loads = {
        "transformers": lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto"),
        "safe_dtype": lambda: SafeAutoModelForCausalLM.from_pretrained(folder),
    }
    first = {name: seconds(load) for name, load in loads.items()}
    turns = [{name: seconds(load) for name, load in loads.items()} for _ in range(int(repeats))]
    found: dict[str, Any] = {"repeats": len(turns), "first_seconds": {name: spent[0] for name, spent in first.items()}}
    for place, clock in enumerate(("seconds", "processor_seconds")):
        medians = {name: statistics.median(turn[name][place] for turn in turns) for name in loads}
        ratios = [turn["safe_dtype"][place] / turn["transformers"][place] for turn in turns]
        found[clock] = {**medians, "ratio": statistics.median(ratios), "quartiles": statistics.quantiles(ratios, n=4)}
    return found


def run(folder: str, loader: str, dtype: str) -> dict[str, Any]:
    """Run `time_load` in a new process."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", folder, loader, dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--gigabytes", default=1.5, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--name", default="loading", show_default=True, help="Of the result file.")
@click.option("--later", is_flag=True, help="Later loads of one process.")
@click.option("--folder", "checkpoint", type=click.Path(path_type=Path), help="Of a checkpoint, for --later.")
def main(*, gigabytes: float, repeats: int, name: str, later: bool, checkpoint: Path | None) -> None:
    """Alternate the two loaders for every dtype and write the ratios."""
    if later:
        click.echo(write_results(name, later_figures(checkpoint, repeats)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), gigabytes)
        shards = len(list(Path(folder).glob("*.safetensors")))
        for dtype in ("bfloat16", "float32", "float16"):
            run(folder, "safe_dtype", dtype)
            runs = [(run(folder, "transformers", dtype), run(folder, "safe_dtype", dtype)) for _ in range(repeats)]
            rows.append(_row(dtype, runs))
            click.echo(rows[-1], err=True)
    click.echo(write_results(name, {"gigabytes": gigabytes, "shards": shards, "rows": rows}))


def later_figures(checkpoint: Path | None, repeats: int) -> dict[str, Any]:
    """Return what later loads take, in a process of their own."""
    with tempfile.TemporaryDirectory() as place:
        folder = checkpoint or Path(place)
        if not (folder / "config.json").exists():
            generation.make_checkpoint(folder, "bfloat16")
        figures = generation.in_child(__file__, "bare", "later", folder, repeats)
    return {"shape": "0.6B", **figures, "busy": os.getloadavg()[0]}


def _row(dtype: str, runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    def median(which: int, what: str) -> float:
        return float(statistics.median(pair[which][what] for pair in runs))

    return {
        "dtype": dtype,
        "transformers_seconds": median(0, "seconds"),
        "safe_dtype_seconds": median(1, "seconds"),
        "seconds_ratio": median(1, "seconds") / median(0, "seconds"),
        "fastest_seconds_ratio": min(two["seconds"] for _, two in runs) / min(one["seconds"] for one, _ in runs),
        "peak_bytes_ratio": median(1, "peak_bytes") / median(0, "peak_bytes"),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child = later_loads(*sys.argv[3:5]) if sys.argv[2] == "later" else time_load(*sys.argv[2:5])
        sys.stdout.write(json.dumps(child) + "\n")
    else:
        main()
