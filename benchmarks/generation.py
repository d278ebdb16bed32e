"""Headline: prefill and decode of one model, loaded by plain transformers in every dtype, and by safe_dtype.

Every loader runs in a process of its own, one after another, on the same machine in the same run: read the ratios,
not the seconds. The model has Qwen3-0.6B's shape (28 layers, 1024 wide, vocabulary 151,936) and random weights.
"""

from __future__ import annotations

import itertools
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
from results_file import write_results

LOADERS = ("auto", "float32", "bfloat16", "float16", "safe_dtype")
CPUS = {
    "bare": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def make_checkpoint(folder: Path, dtype: str, *, layers: int) -> None:
    """Save a random Qwen3 in `dtype`, its weights scaled so that the activations stay ordinary."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, dtype=dtype,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="1GB")


def time_loader(folder: str, loader: str, prompt_tokens: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Load once, generate `repeats` times, and return the medians. Runs in a process of its own."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, predicted = _load(folder, loader)
    torch.manual_seed(1)
    prompt = torch.randint(1000, 100_000, (1, prompt_tokens))
    _generate(model, prompt[:, :32], 3)
    runs = [_generate(model, prompt, new_tokens) for _ in range(repeats)]
    prefill = statistics.median(times[1] - times[0] for times in runs)
    gaps = [later - sooner for times in runs for sooner, later in itertools.pairwise(times[1:])]
    return {
        "loader": loader,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "prefill_seconds": prefill,
        "seconds_per_token": statistics.median(gaps),
        "predicted": predicted,
    }


def _load(folder: str, loader: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    if loader != "safe_dtype":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=loader).eval(), None
    from safe_dtype import SafeAutoModel, plan_of

    model = SafeAutoModel.from_pretrained(folder).eval()
    plan = plan_of(model)
    new = plan.policy.workload.new_tokens
    costs = {
        str(one.candidate): (
            one.cost.prefill_seconds,
            (one.cost.decode_seconds or 0) / new,
            str(one.ground or "accepted"),
        )
        for one in plan.decisions
    }
    return model, {"chosen": str(plan.storage), "reason": plan.reason, "costs": costs}


class _Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to write."""


def _generate(model: Any, prompt: Any, new_tokens: int) -> list[float]:
    import torch

    clock = _Clock()
    with torch.inference_mode():
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            do_sample=False, streamer=clock, pad_token_id=0,
        )  # fmt: skip
    return clock.times


def run_loader(folder: str, cpu: str, loader: str, sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Run `time_loader` in a child process under the settings of `cpu`."""
    command = [sys.executable, __file__, "--child", folder, loader, *map(str, sizes)]
    done = subprocess.run(command, env=os.environ | CPUS[cpu], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@click.command()
@click.option("--layers", default=28, show_default=True)
@click.option("--sizes", type=(int, int, int), default=(512, 32, 2), show_default=True, help="Prompt, new, repeats.")
@click.option("--saved", multiple=True, default=["bfloat16", "float32"], show_default=True)
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), default=list(CPUS), show_default=True)
@click.option("--name", default="generation", show_default=True, help="Of the result file.")
def main(
    *, layers: int, sizes: tuple[int, int, int], saved: tuple[str, ...], cpus: tuple[str, ...], name: str
) -> None:
    """Time every loader on every checkpoint and CPU setting, and write the table."""
    rows = []
    for dtype in saved:
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(Path(folder), dtype, layers=layers)
            for cpu, loader in itertools.product(cpus, LOADERS):
                row = run_loader(folder, cpu, loader, sizes)
                rows.append({"saved": dtype, "cpu": cpu, **row})
                click.echo(_line(rows[-1]), err=True)
    named = dict(zip(("prompt_tokens", "new_tokens", "repeats"), sizes, strict=True))
    click.echo(write_results(name, {"layers": layers, **named, "rows": rows}))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['saved']:9} {row['cpu']:5} {row['loader']:11} {row['dtype']:9} "
        f"prefill {row['prefill_seconds']:7.2f} s, {1 / row['seconds_per_token']:6.1f} tokens/s"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, child_folder, child_loader, *child_sizes = sys.argv
        sys.stdout.write(json.dumps(time_loader(child_folder, child_loader, *map(int, child_sizes))) + "\n")
    else:
        main()
