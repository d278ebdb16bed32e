"""What the guard costs when nothing fails, and what it saves when something does.

    python benchmarks/guard.py                 # all of it, about 10 minutes
    python benchmarks/guard.py overhead        # one part: bare, instructions, overhead, recovery, memory, experiment

Bare: calls of a model that computes nothing, plain and guarded in turn: the difference is the guard's own time.
Instructions: the same calls counted in instructions of the processor by valgrind, which no other load of the machine
changes. Overhead: steps of a real model, plain and guarded in turn. Recovery: the same generation with a failure at step k,
against one that is begun anew in float32 there; with a plot. Memory: the peak of a process that recasts a model.
Experiment: a step that fails with a text nobody knows, plain and guarded in strict mode, where all that the guard does is to
find out: in a failure that float32 cures, and in one that nothing cures. The peak is that of a process of its own.
"""

from __future__ import annotations

import json
import os
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
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

STEPS, CALLS, ROUNDS = 100, 2000, 15
NEW_TOKENS = 64
FAIL_AT = (0, 1, 8, 16, 32, 48, 63)
TINY = Path("examples/tiny-qwen3")
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


def decode(models: tuple[Any, ...], steps: int) -> list[tuple[float, ...]]:
    """Return the seconds of `steps` steps of one token, the models in turn, each with a growing cache of its own."""
    caches = [transformers.DynamicCache(config=one.config) for one in models]
    token = torch.tensor([[5]])
    rows = []
    with torch.no_grad():
        for _ in range(steps):
            row = []
            for model, cache in zip(models, caches, strict=True):
                begin = time.perf_counter()
                model(input_ids=token, past_key_values=cache, use_cache=True)
                row.append(time.perf_counter() - begin)
            rows.append(tuple(row))
    return rows[5:]


class Still(transformers.Qwen3ForCausalLM):  # type: ignore[misc]  # transformers has no types
    """A model that returns what it is given to keep."""

    kept: Any = None

    def forward(self, **_: Any) -> Any:
        """Compute nothing."""
        return self.kept


def still(layers: int, vocabulary: int) -> tuple[Still, dict[str, Any]]:
    """Return a model that computes nothing, and arguments of a call of it, with a filled cache of `layers` layers."""
    real = model_of(layers, 64, vocabulary)
    given = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 9), "use_cache": True,
             "past_key_values": transformers.DynamicCache(config=real.config)}  # fmt: skip
    with torch.no_grad():
        kept = real(**given)
    model = Still(model_of(1, 64, 97).config).eval()
    model.kept = kept
    return model, given


def bare(layers: int, vocabulary: int) -> dict[str, Any]:
    """Return the microseconds that the guard takes for a call, beside a filled cache of `layers` layers."""
    torch.set_num_threads(1)
    model, given = still(layers, vocabulary)

    def seconds() -> float:
        begin = time.perf_counter()
        for _ in range(CALLS):
            model(**given)
        return (time.perf_counter() - begin) / CALLS

    rounds = []
    for _ in range(ROUNDS):
        unguard(model)
        plain = seconds()
        guard(model)
        rounds.append(seconds() - plain)
    return {
        "layers": layers, "vocabulary": vocabulary, "calls": CALLS, "rounds": ROUNDS,
        "overhead_us": round(statistics.median(rounds) * 1e6, 1),
        "overhead_us_quartiles": [round(one * 1e6, 1) for one in statistics.quantiles(rounds, n=4)],
    }  # fmt: skip


def instructions(layers: int, vocabulary: int) -> dict[str, Any]:
    """Return how many instructions a call takes, plain and guarded, beside a filled cache of `layers` layers.

    Two processes that differ in the number of calls alone: what they have in common (imports, the cache) cancels.
    """
    plain, guarded = (
        (_counted(layers, vocabulary, 5100, is_guarded=one) - _counted(layers, vocabulary, 100, is_guarded=one)) / 5000
        for one in (False, True)
    )
    return {
        "layers": layers, "vocabulary": vocabulary, "plain": round(plain), "guarded": round(guarded),
        "guard": round(guarded - plain),
    }  # fmt: skip


def _counted(layers: int, vocabulary: int, calls: int, *, is_guarded: bool) -> int:
    code = f"""
import gc, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from guard import guard, still, torch
torch.set_num_threads(1)
model, given = still({layers}, {vocabulary})
if {is_guarded}: guard(model)
gc.collect(); gc.freeze(); gc.disable()
for _ in range({calls}): model(**given)
"""
    environment = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    return int(re.findall(r"I *refs: +([\d,]+)", run.stderr)[0].replace(",", ""))


def overhead(layers: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    """Return the median microseconds of a step, plain and guarded, and of the difference between neighbours."""
    torch.set_num_threads(1)
    plain, guarded = model_of(layers, hidden, vocabulary), guard(model_of(layers, hidden, vocabulary))
    rows = [row for _ in range(ROUNDS) for row in decode((plain, guarded), STEPS)]
    differences = [after - before for before, after in rows]
    return {
        "layers": layers, "hidden": hidden, "vocabulary": vocabulary, "steps": len(rows),
        "plain_us": round(statistics.median(one for one, _ in rows) * 1e6, 1),
        "guarded_us": round(statistics.median(one for _, one in rows) * 1e6, 1),
        "difference_us": round(statistics.median(differences) * 1e6, 1),
        "difference_us_quartiles": [round(one * 1e6, 1) for one in statistics.quantiles(differences, n=4)],
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


def plot(rows: list[dict[str, Any]]) -> str:
    """Return an SVG of the seconds over the failing step."""
    width, height, left, top = 520, 240, 45, 15
    tallest = max(row["restarted_s"] for row in rows) * 1.1

    def points(name: str) -> str:
        return " ".join(
            f"{left + row['step'] / NEW_TOKENS * width:.0f},{top + height - row[name] / tallest * height:.0f}"
            for row in rows
        )

    lines = [
        f'<polyline points="{points(name)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{left + 15}" y="{top + 15 + 18 * place}" fill="{colour}">{label}</text>'
        for place, (name, colour, label) in enumerate((
            ("restarted_s", "#b3552d", "begun anew in float32"),
            ("recovered_s", "#1f6f8b", "gone on from the step"),
        ))
    ]  # fmt: skip
    ticks = [
        f'<text x="{left - 8}" y="{top + height - share * height + 4:.0f}" text-anchor="end">{share * tallest:.1f} s</text>'
        for share in (0, 0.5, 1)
    ] + [
        f'<text x="{left + share * width:.0f}" y="{top + height + 18}" text-anchor="middle">{share * NEW_TOKENS:.0f}</text>'
        for share in (0, 0.5, 1)
    ]
    axes = f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="#777"/>'
    caption = f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">step that fails, of {NEW_TOKENS}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {top + height + 45}" '
        f'font-family="sans-serif" font-size="12">{axes}{"".join(lines)}{"".join(ticks)}{caption}</svg>\n'
    )


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


def experiment(source: str, layers: int = 0, hidden: int = 0, vocabulary: int = 0) -> list[dict[str, Any]]:
    """Return what it takes to find out about a failing prompt of 64 tokens: milliseconds, and bytes above a plain one."""
    made = (
        f"transformers.AutoModelForCausalLM.from_pretrained({source!r}, dtype=torch.bfloat16)"
        if source
        else f"model_of({layers}, {hidden}, {vocabulary}, torch.bfloat16)"
    )
    rows: list[dict[str, Any]] = []
    for failure, when in (("cured by float32", "args[0].dtype == torch.bfloat16"), ("cured by nothing", "True")):
        plain, guarded = (_examined(made, when, is_guarded=one) for one in (False, True))
        rows.append({
            "model": source or f"{layers} layers of {hidden}, vocabulary {vocabulary}", "failure": failure,
            "weights_bytes": plain["weights_bytes"], "plain_ms": plain["ms"], "experiment_ms": round(guarded["ms"] - plain["ms"], 1),
            "experiment_peak_bytes": max(0, guarded["peak_bytes"] - plain["peak_bytes"]),
        })  # fmt: skip
    return rows


def _examined(made: str, when: str, *, is_guarded: bool) -> dict[str, Any]:
    code = f"""
import json, re, statistics, sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from guard import guard, model_of, torch, transformers
def status(name): return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
torch.set_num_threads(1)
model = {made}.eval()
if {is_guarded}: guard(model, policy="strict")
def fail(module, args):
    if {when}: raise RuntimeError("opcode 0x3f")
place = model.model.layers[len(model.model.layers) // 2].mlp.down_proj
ids = torch.arange(3, 67)[None]
with torch.no_grad():
    for _ in range(3): model(input_ids=ids)
    place.register_forward_pre_hook(fail)
    times = []
    for turn in range(6):
        if turn == 0:
            open("/proc/self/clear_refs", "w").write("5")
            before = status("VmRSS")
        begin = time.perf_counter()
        try: model(input_ids=ids)
        except Exception: pass
        times.append(time.perf_counter() - begin)
        if turn == 0: peak = status("VmHWM") - before
weights = sum(one.numel() * one.itemsize for one in model.parameters())
print(json.dumps({{"ms": round(statistics.median(times[1:]) * 1e3, 1), "peak_bytes": peak, "weights_bytes": weights}}))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Run what is asked for, and add it to the result file."""
    transformers.logging.set_verbosity_error()
    parts: dict[str, Callable[[], Any]] = {
        "bare": lambda: [bare(2, 97), bare(28, 97), bare(28, 151936)],
        "instructions": lambda: [instructions(2, 97), instructions(28, 151936)],
        "overhead": lambda: [overhead(2, 64, 97), overhead(28, 64, 97)],
        "recovery": recovery,
        "memory": memory,
        "experiment": lambda: [*experiment(str(TINY)), *experiment("", 12, 1024, 64000)],
    }
    for name in sys.argv[1:] or parts:
        figures = parts[name]()
        click.echo(json.dumps({name: figures}, indent=1))
        file = write_results(f"guard_{name}", figures)
        if name == "recovery":
            file.with_suffix(".svg").write_text(plot(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
