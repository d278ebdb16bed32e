"""Headline: load, prefill, decode and memory of one model, loaded by plain transformers in every dtype and by us.

Every loader runs in a process of its own, one after another, on the same machine in the same run: read the ratios,
not the seconds. The model has Qwen3-0.6B's shape (28 layers, 1024 wide, vocabulary 151,936) and random weights.
Beside the times stand the limits of the machine: how fast memory is read, and the best rate of a matrix product.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from ratio_bars import ratio_bars
from results_file import write_results

LOADERS = ("auto", "float32", "bfloat16", "float16", "safe_dtype")
# name -> layers, hidden, intermediate, heads, key-value heads, vocabulary
SHAPES = {
    "0.1B": (12, 768, 2304, 6, 3, 50_048),
    "0.6B": (28, 1024, 3072, 16, 8, 151_936),
    "1.7B": (28, 2048, 6144, 16, 8, 151_936),
}
TOKENIZER = Path(__file__).resolve().parent.parent / "examples" / "tiny-qwen3"
CPUS = {
    "bare": {},
    "avx512_core": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


def make_checkpoint(folder: Path, dtype: str, *, shape: str = "0.6B") -> None:
    """Save a random Qwen3 in `dtype`, its weights scaled so that the activations stay ordinary, and a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    layers, hidden, intermediate, heads, key_value_heads, vocabulary = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_value_heads, head_dim=128, tie_word_embeddings=True,
        dtype=dtype,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="1GB")
    for file in TOKENIZER.glob("*token*"):
        shutil.copy(file, folder)


def time_loader(folder: str, loader: str, prompt_tokens: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Load once, generate `repeats` times, and return the medians. Runs in a process of its own."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    started = time.perf_counter()
    model, predicted = _load(folder, loader)
    seconds = time.perf_counter() - started
    return {
        "loader": loader,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "load_seconds": seconds,
        **timed(model, prompt_tokens, new_tokens, repeats),
        "predicted": predicted,
        "threads": torch.get_num_threads(),
    }


def timed(model: Any, prompt_tokens: int, new_tokens: int, repeats: int) -> dict[str, float]:
    """Generate `repeats` times; return the median times of prefill and of a token, and the peak of memory so far."""
    import torch

    torch.manual_seed(1)
    prompt = torch.randint(100, model.config.vocab_size, (1, prompt_tokens))
    _generate(model, prompt[:, :32], 3)
    runs = [_generate(model, prompt, new_tokens) for _ in range(repeats)]
    gaps = [later - sooner for times in runs for sooner, later in itertools.pairwise(times[1:])]
    return {
        "prefill_seconds": statistics.median(times[1] - times[0] for times in runs),
        "seconds_per_token": statistics.median(gaps),
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """Return the peak of resident memory of this process; getrusage counts the parent's before exec too. Linux."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def limits() -> dict[str, float]:
    """Return how fast this machine reads memory (bytes/s), and its best rate of a product in each dtype (flop/s)."""
    import torch

    def best(call: Any, count: int = 7) -> float:
        call()
        return min(_seconds(call) for _ in range(count))

    numbers = torch.ones(2**28)  # 1 GB, beyond any cache
    found = {"read_bytes_per_s": numbers.nbytes / best(numbers.sum)}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.randn(1024, 2048).to(dtype) for _ in range(2))
        name = f"{str(dtype).removeprefix('torch.')}_flop_per_s"
        found[name] = 2 * 1024 * 1024 * 2048 / best(lambda a=a, b=b: torch.nn.functional.linear(a, b), 3)
    return found


def _seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


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
    chosen = str(plan.chosen.candidate) if plan.chosen else str(plan.storage)
    layout = plan.routes.layout if plan.routes else "plain"
    return model, {"chosen": chosen, "layout": layout, "reason": plan.reason, "costs": costs}


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


def in_child(script: str, cpu: str, *arguments: object) -> Any:
    """Run `script --child ARGUMENTS` under the settings of `cpu`; return what its last line says in JSON."""
    command = [sys.executable, script, "--child", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | CPUS[cpu], check=False, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="0.6B", show_default=True)
@click.option("--sizes", type=(int, int, int), default=(512, 32, 2), show_default=True, help="Prompt, new, repeats.")
@click.option("--saved", multiple=True, default=["bfloat16", "float32"], show_default=True)
@click.option(
    "--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), default=["bare", "avx2"], show_default=True
)
@click.option("--name", default="generation", show_default=True, help="Of the result file.")
def main(*, shape: str, sizes: tuple[int, int, int], saved: tuple[str, ...], cpus: tuple[str, ...], name: str) -> None:
    """Time every loader on every checkpoint and CPU setting, and write the table and its plot."""
    rows = []
    measured = {cpu: in_child(__file__, cpu, "limits") for cpu in cpus}
    for dtype in saved:
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(Path(folder), dtype, shape=shape)
            for cpu, loader in itertools.product(cpus, LOADERS):
                row = in_child(__file__, cpu, folder, loader, *sizes)
                rows.append({"saved": dtype, "cpu": cpu, **row})
                click.echo(_line(rows[-1]), err=True)
    named = dict(zip(("prompt_tokens", "new_tokens", "repeats"), sizes, strict=True))
    file = write_results(name, {"shape": shape, **named, "limits": measured, "rows": rows})
    file.with_suffix(".svg").write_text(plot(rows), encoding="utf-8")
    click.echo(file)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['saved']:9} {row['cpu']:5} {row['loader']:11} {row['dtype']:9} load {row['load_seconds']:5.1f} s, "
        f"prefill {row['prefill_seconds']:7.2f} s, {1 / row['seconds_per_token']:6.1f} tokens/s, "
        f"peak {row['peak_bytes'] / 1e9:.2f} GB"
    )


def plot(rows: list[dict[str, Any]]) -> str:
    """Draw how many times faster each loader is than `dtype="auto"`: bars for prefill and decode, by machine."""
    bars = [
        (f"{row['saved']} on {row['cpu']}", row["loader"], base["prefill_seconds"] / row["prefill_seconds"],
         base["seconds_per_token"] / row["seconds_per_token"])
        for row in rows
        for base in rows
        if (base["saved"], base["cpu"], base["loader"]) == (row["saved"], row["cpu"], "auto")
    ]  # fmt: skip
    return ratio_bars(bars, ("prefill", "decode"), 'times as fast as dtype="auto"')


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, child_folder, *child_given = sys.argv
        if child_folder == "limits":
            said: Any = limits()
        else:
            said = time_loader(child_folder, child_given[0], *map(int, child_given[1:]))
        sys.stdout.write(json.dumps(said) + "\n")
    else:
        main()
