"""A float32 checkpoint of bfloat16 numbers by plain transformers, and as safe_dtype holds it: in 16 bit, computed in float32.

    python benchmarks/cast_up.py FOLDER [--shape 0.6B] [--cpu avx2] [--sizes 512 16 3]

The checkpoint in FOLDER is random, of Qwen3's shape, made where it is missing. Both are loaded into one process and answer in turn, so that what disturbs one
disturbs both: ratios are medians over the turns. Memory is that of a process with one of them alone, right after a first
answer: pages of its own, and the pages of the files that lie in it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
from generation import CPUS, SHAPES, in_child, make_checkpoint
from results_file import RESULTS, write_results

LOADERS = ("plain", "safe_dtype")
_STATUS = {"anonymous_mb": "RssAnon", "files_mb": "RssFile", "peak_mb": "VmHWM"}


def load(folder: str, loader: str) -> Any:
    """Load as plain transformers does, or as this library."""
    if loader == "plain":
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    from safe_dtype import SafeAutoModelForCausalLM

    # Its numbers as they are: whether less would be near enough is no question here.
    return SafeAutoModelForCausalLM.from_pretrained(folder, policy="prefer=fidelity").eval()


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _value: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to write."""


def answer(model: Any, prompt: Any, new: int) -> tuple[float, float, list[int]]:
    """Return the seconds of a prompt, the median seconds of a token, and the tokens."""
    import torch

    clock = Clock()
    with torch.inference_mode():
        tokens = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            streamer=clock, pad_token_id=0,
        )  # fmt: skip
    gaps = [later - sooner for sooner, later in itertools.pairwise(clock.times[1:])]
    return clock.times[1] - clock.times[0], statistics.median(gaps), tokens[0].tolist()


def in_turn(folder: str, length: int, new: int, turns: int) -> dict[str, Any]:
    """Let both answer in turn; return medians of their seconds and of the ratios."""
    import torch

    from safe_dtype import plan_of

    models = {loader: load(folder, loader) for loader in LOADERS}
    torch.manual_seed(1)
    prompt = torch.randint(100, models["plain"].config.vocab_size, (1, length))
    runs: dict[str, list[tuple[float, float, list[int]]]] = {loader: [] for loader in LOADERS}
    for turn in range(turns + 1):
        for loader, model in models.items():
            run = answer(model, prompt, new)
            if turn:  # the first loads what is needed
                runs[loader].append(run)
    pairs = list(zip(runs["plain"], runs["safe_dtype"], strict=True))
    seconds = {
        loader: {
            "prompt_seconds": statistics.median(run[0] for run in of_one),
            "token_ms": statistics.median(run[1] for run in of_one) * 1e3,
        }
        for loader, of_one in runs.items()
    }
    return {
        "plan": plan_of(models["safe_dtype"]).what,
        **seconds,
        "plain over safe_dtype, prompt": statistics.median(plain[0] / ours[0] for plain, ours in pairs),
        "plain over safe_dtype, token": statistics.median(plain[1] / ours[1] for plain, ours in pairs),
        "same tokens": all(plain[2] == ours[2] for plain, ours in pairs),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def memory(folder: str, loader: str, length: int) -> dict[str, float]:
    """Load one of them and let it answer; return megabytes, and the seconds of the load."""
    import torch

    begun = time.perf_counter()
    model = load(folder, loader)
    loaded = time.perf_counter() - begun
    answer(model, torch.randint(100, model.config.vocab_size, (1, length)), 3)
    status = Path("/proc/self/status").read_text()
    found = {name: re.search(rf"{line}:\s+(\d+)", status) for name, line in _STATUS.items()}
    return {name: round(int(one[1]) * 1024 / 1e6) for name, one in found.items() if one} | {"load_seconds": loaded}


def make(folder: Path, shape: str) -> None:
    """Save a random checkpoint in float32 whose numbers are bfloat16's."""
    import torch
    from transformers import AutoModelForCausalLM

    make_checkpoint(folder, "bfloat16", shape=shape)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for file in folder.glob("model*"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size="1GB")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shape", type=click.Choice(list(SHAPES)), default="0.6B", show_default=True)
@click.option("--sizes", type=(int, int, int), default=(512, 16, 3), show_default=True, help="Prompt, new, turns.")
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), default=["bare", "avx2"])
def main(*, folder: Path, shape: str, sizes: tuple[int, int, int], cpus: tuple[str, ...]) -> None:
    """Measure both, and write a row for each CPU beside those that the file of results holds already."""
    file = RESULTS / "cast_up.json"
    before = json.loads(file.read_text())["figures"]["rows"] if file.exists() else []
    rows = [row for row in before if row["cpu"] not in cpus]
    if not (folder / "config.json").exists():
        make(folder, shape)
    for cpu in cpus:
        rows.append({"cpu": cpu, "shape": shape, "sizes": sizes, **in_child(__file__, cpu, folder, "turns", *sizes)})
        for loader in LOADERS:
            rows[-1][loader] |= in_child(__file__, cpu, folder, loader, sizes[0])
        click.echo(json.dumps(rows[-1], indent=1), err=True)
    click.echo(write_results("cast_up", {"rows": rows}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child_folder, what, *numbers = sys.argv[2:]
        measured = in_turn if what == "turns" else memory
        given = (*([] if what == "turns" else [what]), *map(int, numbers))
        sys.stdout.write(json.dumps(measured(child_folder, *given)) + "\n")  # type: ignore[arg-type]
    else:
        main()
