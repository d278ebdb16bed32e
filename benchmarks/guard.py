"""What the guard costs when nothing fails, and what it saves when something does.

    python benchmarks/guard.py                 # all of it, about 10 minutes
    python benchmarks/guard.py overhead        # one part: overhead, recovery, memory
    python benchmarks/guard.py instructions    # the overhead counted by valgrind instead of timed; half an hour

Overhead: steps of the same model, plain and guarded in turn, in one run. Recovery: the same generation with a failure
at step k, against one that begins anew in float32 there. Memory: the peak of a process that recasts a model.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from results_file import write_results

from safe_dtype import guard, report, unguard
from safe_dtype.guarding.recast import recast
from safe_dtype.testing import fault

STEPS, ROUNDS = 100, 15
NEW_TOKENS = 64
FAIL_AT = (0, 1, 8, 16, 32, 48, 63)
MODULE = "model.layers.6.mlp.down_proj"


def model_of(layers: int, hidden: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> Any:
    """Return a random Qwen3 of this shape."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64 or 1, num_key_value_heads=hidden // 64 or 1, head_dim=min(64, hidden),
        eos_token_id=None, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).eval()
    recast(model, {torch.float32}, dtype)
    return model


def decode(model: Any, steps: int) -> list[float]:
    """Return the seconds of each of `steps` steps of one token with a growing cache."""
    cache = transformers.DynamicCache(config=model.config)
    token = torch.tensor([[5]])
    seconds = []
    with torch.no_grad():
        for _ in range(steps):
            begin = time.perf_counter()
            model(input_ids=token, past_key_values=cache, use_cache=True)
            seconds.append(time.perf_counter() - begin)
    return seconds[5:]


def overhead(layers: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    """Return the median microseconds of a step, plain and guarded, and the median of the differences by round."""
    torch.set_num_threads(1)
    model = model_of(layers, hidden, vocabulary)
    rounds = []
    for _ in range(ROUNDS):
        unguard(model)
        plain = statistics.median(decode(model, STEPS))
        guard(model)
        rounds.append((plain, statistics.median(decode(model, STEPS))))
    return {
        "layers": layers, "hidden": hidden, "vocabulary": vocabulary, "steps": STEPS, "rounds": ROUNDS,
        "plain_us": round(statistics.median(plain for plain, _ in rounds) * 1e6, 1),
        "guarded_us": round(statistics.median(guarded for _, guarded in rounds) * 1e6, 1),
        "overhead_us": round(statistics.median(guarded - plain for plain, guarded in rounds) * 1e6, 1),
        "overhead_us_quartiles": [
            round(one * 1e6, 1) for one in statistics.quantiles((guarded - plain for plain, guarded in rounds), n=4)
        ],
    }  # fmt: skip


def recovered(step: int) -> dict[str, Any]:
    """Time a generation that fails at `step` and goes on from there."""
    model = guard(model_of(12, 512, 32000, torch.bfloat16))
    with fault(model, MODULE, "cublas", call=step):
        seconds = generate_seconds(model)
    (event,) = report(model).events
    return {
        "recovered_s": round(seconds, 3), "cure_ms": round(event.milliseconds, 1), "grown_bytes": event.grown_bytes,
    }  # fmt: skip


def restarted(step: int) -> float:
    """Time a generation that fails at `step` and is begun anew by hand, in float32."""
    model = model_of(12, 512, 32000, torch.bfloat16)
    begin = time.perf_counter()
    with fault(model, MODULE, "cublas", call=step):
        try:
            generate_seconds(model)
        except RuntimeError:
            recast(model, {torch.bfloat16}, torch.float32)
            generate_seconds(model)
    return round(time.perf_counter() - begin, 3)


def generate_seconds(model: Any) -> float:
    """Time a greedy generation of NEW_TOKENS after a prompt of 64."""
    begin = time.perf_counter()
    model.generate(torch.arange(3, 67)[None], max_new_tokens=NEW_TOKENS, do_sample=False)
    return time.perf_counter() - begin


def recovery() -> list[dict[str, Any]]:
    """Return, for each failing step, the median seconds of three with a recovery there and with a restart there."""
    rows = []
    for step in FAIL_AT:
        found = sorted((recovered(step) for _ in range(3)), key=lambda one: one["recovered_s"])[1]
        rows.append({"step": step, **found, "restarted_s": statistics.median(restarted(step) for _ in range(3))})
        click.echo(rows[-1], err=True)
    return rows


def memory() -> dict[str, int]:
    """Return the resident bytes of a process before, at the peak of and after a recast from bfloat16 to float32."""
    code = f"""
import re, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from guard import model_of, recast, torch
def status(name): return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
model = model_of(12, 1024, 64000, torch.bfloat16)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS"); done = recast(model, {{torch.bfloat16}}, torch.float32)
largest = max(one.numel() * 4 for one in model.parameters())
print(before, status("VmHWM"), status("VmRSS"), done.grown_bytes, largest)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    names = ("before_bytes", "peak_bytes", "after_bytes", "grown_bytes", "largest_tensor_bytes")
    return dict(zip(names, map(int, found), strict=True))


def instructions() -> dict[str, float]:
    """Return the instructions of one step, plain and guarded: the difference of two runs of unlike length."""
    counted: dict[str, float] = {}
    for mode in ("plain", "guarded"):
        runs = []
        for steps in (50, 150):
            code = (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from guard import *; "
                f"torch.set_num_threads(1); model = model_of(2, 64, 97); "
                f"{'guard(model); ' if mode == 'guarded' else ''}decode(model, 10); decode(model, {steps})"
            )
            command = ["valgrind", "--tool=none", "--stats=no", "--tool=lackey", "--basic-counts=yes",
                       sys.executable, "-c", code]  # fmt: skip
            text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            runs.append(int(re.sub(r"\D", "", re.search(r"guest instrs:\s+([\d,]+)", text)[1])))  # type: ignore[index]
        counted[mode] = (runs[1] - runs[0]) / 100
    return {**counted, "overhead": counted["guarded"] - counted["plain"]}


def main() -> None:
    """Run what is asked for, and add it to the result file."""
    transformers.logging.set_verbosity_error()
    parts: dict[str, Callable[[], Any]] = {
        "overhead": lambda: [overhead(2, 64, 97), overhead(28, 64, 97), overhead(4, 128, 151936)],
        "recovery": recovery,
        "memory": memory,
        "instructions": instructions,
    }
    asked = sys.argv[1:] or ["overhead", "recovery", "memory"]
    for name in asked:
        figures = parts[name]()
        click.echo(json.dumps({name: figures}, indent=1))
        write_results(f"guard_{name}", figures)


if __name__ == "__main__":
    main()
