"""The peak of a training step, predicted without computing anything, beside the peak that a process really reaches.

    python benchmarks/training_memory.py               # all shapes
    python benchmarks/training_memory.py wide deep     # these again, beside the others of results/training_memory.json
    python benchmarks/training_memory.py deep --way float32   # one way
    python benchmarks/training_memory.py --predict     # what was measured beside what is predicted now of the same tensors

Models of 29 to 77 million parameters, AdamW, micro-batches of 256 tokens a row; bfloat16 autocast and float32, with and without
activation checkpointing, and with micro-batches half as large and twice as many. What the allocator keeps was fitted on
these rows. Each peak is measured in a process of its own: the highest resident size in the last of four steps, less
that before the model was made, the median of `processes`. "Of tensors" is that of a process whose allocator gives back at
once what is free (MALLOC_MMAP_THRESHOLD_). Only Linux tells it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from results_file import RESULTS, write_results
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype
from safe_dtype.training.memory import Checkpointing, TracedStep, trace_step

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_STEPS = 4


def _llama(hidden: int, intermediate: int, layers: int, vocabulary: int) -> LlamaConfig:
    heads = hidden // 64
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=vocabulary, max_position_embeddings=512, use_cache=False,
    )  # fmt: skip


SHAPES: dict[str, PretrainedConfig] = {
    "fitted": _llama(512, 1376, 8, 4000),
    "wide": _llama(1024, 2752, 4, 8000),
    "deep": _llama(384, 1024, 28, 8000),
    "vocabulary": _llama(512, 1376, 4, 64000),
    "experts": Qwen3MoeConfig(
        hidden_size=512, intermediate_size=1376, moe_intermediate_size=512, num_experts=8, num_experts_per_tok=2,
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8, head_dim=64, vocab_size=8000,
        max_position_embeddings=512, use_cache=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a step is made."""

    dtype: Dtype
    every: int = 0  # of the layers that are checkpointed; 0: none
    rows: int = 4
    micro_batches: int = 1

    @property
    def checkpointing(self) -> Checkpointing | None:
        """What is turned on."""
        return Checkpointing(self.every) if self.every else None


WAYS = {
    "bfloat16": Way(BFLOAT16), "bfloat16 checkpointed": Way(BFLOAT16, 1), "float32": Way(FLOAT32),
    "float32, every second layer checkpointed": Way(FLOAT32, 2), "float32 checkpointed": Way(FLOAT32, 1),
    "float32, two micro-batches of half the rows": Way(FLOAT32, 0, 2, 2),
}  # fmt: skip


def model(shape: str) -> Any:
    """Make a model, always the same."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(SHAPES[shape])


def batch(rows: int) -> dict[str, torch.Tensor]:
    """Make a micro-batch."""
    tokens = torch.randint(0, 4000, (rows, 256), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "labels": tokens}


def measure(shape: str, way: Way) -> int:
    """Train some steps; return how far the resident size of this process rises in the last, in bytes."""
    before = _status("VmRSS")
    trained = model(shape).train()
    if way.checkpointing is not None:
        way.checkpointing.enable(trained)
    optimizer = torch.optim.AdamW(trained.parameters())
    for number in range(_STEPS):
        if number == _STEPS - 1:
            _RESET.write_text("5")  # the highest resident size is that of now
        for _ in range(way.micro_batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=way.dtype == BFLOAT16):
                loss = trained(**batch(way.rows)).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _measured(shape: str, way: str, **environment: str) -> int:
    command = [sys.executable, __file__, "--measure", shape, way]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def compare(shape: str, ways: Iterable[str], processes: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each way."""
    for name in ways:
        way = WAYS[name]
        since = time.perf_counter()
        trained = model(shape)
        step = trace_step(
            trained, batch(way.rows), way.dtype, checkpointing=way.checkpointing, accumulates=way.micro_batches > 1
        )
        seconds = time.perf_counter() - since
        runs = [_measured(shape, name) for _ in range(processes)]
        yield {
            "shape": shape,
            "parameters": sum(weight.numel() for weight in trained.parameters()),
            "way": name,
            **_compared(step, statistics.median(runs)),
            "processes": processes,
            "measured_bytes_of_each": sorted(runs),
            "predicted_bytes_of_tensors": step.peak_bytes,
            "measured_bytes_of_tensors": _measured(shape, name, MALLOC_MMAP_THRESHOLD_="65536"),
            "seconds_to_predict": round(seconds, 2),
            "kinds": dict(step.kinds),
            "large": dict(step.large),
        }


def _compared(step: TracedStep, measured: float) -> dict[str, Any]:
    return {
        "predicted_bytes": step.needed_bytes,
        "measured_bytes": measured,
        "off_by_mib": round((step.needed_bytes - measured) / 2**20, 1),
        "predicted_over_measured": round(step.needed_bytes / measured, 3),
    }


def _predicted_again(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the prediction of now, of the tensors that were followed then."""
    large = tuple(row.get("large", {}).items())
    step = TracedStep("cpu", row["predicted_bytes_of_tensors"], tuple(row["kinds"].items()), large=large)
    return {**row, **_compared(step, row["measured_bytes"])}


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return list(SHAPES).index(row["shape"]), list(WAYS).index(row["way"])


@click.command(help=__doc__)
@click.argument("shapes", nargs=-1)
@click.option("--processes", default=3, show_default=True, help="In which each peak is measured.")
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), help="Only these ways; else all.")
@click.option("--predict", is_flag=True, help="Measure nothing.")
@click.option("--measure", "measured", nargs=2, hidden=True)
def main(
    shapes: tuple[str, ...], processes: int, ways: tuple[str, ...], *, predict: bool, measured: tuple[str, str] | None
) -> None:
    """Compare, or measure in this process."""
    if measured:
        click.echo(measure(measured[0], WAYS[measured[1]]))
        return
    file = RESULTS / "training_memory.json"
    before = json.loads(file.read_text(encoding="utf-8"))["figures"] if shapes or ways or predict else []
    if predict:
        write_results("training_memory", [_predicted_again(row) for row in before])
        return
    for shape in shapes or SHAPES:
        for row in compare(shape, ways or WAYS, processes):
            click.echo(json.dumps(row))
            before = [old for old in before if (old["shape"], old["way"]) != (shape, row["way"])] + [row]
            write_results("training_memory", sorted(before, key=_place))  # a run may end in the middle


if __name__ == "__main__":
    main()
