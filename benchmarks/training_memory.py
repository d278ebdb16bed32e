"""The peak of a training step, predicted without computing anything, beside the peak that a process really reaches.

    python benchmarks/training_memory.py

A Llama of 29 million parameters, 4 rows of 256 tokens, AdamW; bfloat16 autocast and float32, with and without activation
checkpointing. Each peak is measured in processes of their own: the highest resident size in the fourth step, less that
before the model was made, the median of three. "Of tensors" is that of a process whose allocator gives back at once what is
free (MALLOC_MMAP_THRESHOLD_). Only Linux tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from results_file import write_results
from transformers import LlamaConfig, LlamaForCausalLM

from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype, dtype_named
from safe_dtype.training.memory import Checkpointing, trace_step

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CONFIGURATIONS = [(dtype, checkpointed) for dtype in (BFLOAT16, FLOAT32) for checkpointed in (False, True)]


def model() -> Any:
    """Make the model, always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=4000, max_position_embeddings=512, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def batch() -> dict[str, torch.Tensor]:
    """Make a micro-batch."""
    tokens = torch.ones(4, 256, dtype=torch.long)
    return {"input_ids": tokens, "labels": tokens}


def measure(dtype: Dtype, *, checkpointed: bool) -> int:
    """Train four steps; return how far the resident size of this process rises in the last, in bytes."""
    before = _status("VmRSS")
    trained = model().train()
    if checkpointed:
        Checkpointing().enable(trained)
    optimizer = torch.optim.AdamW(trained.parameters())
    for number in range(4):
        if number == 3:
            _RESET.write_text("5")  # the highest resident size is that of now
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == BFLOAT16):
            loss = trained(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _measured(dtype: Dtype, *, checkpointed: bool, **environment: str) -> int:
    command = [sys.executable, __file__, "--measure", dtype.name, str(int(checkpointed))]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def compare() -> list[dict[str, Any]]:
    """Return a row for each configuration."""
    rows = []
    for dtype, checkpointed in _CONFIGURATIONS:
        since = time.perf_counter()
        step = trace_step(model(), batch(), dtype, checkpointing=Checkpointing() if checkpointed else None)
        seconds = time.perf_counter() - since
        measured = statistics.median(_measured(dtype, checkpointed=checkpointed) for _ in range(3))
        tensors = _measured(dtype, checkpointed=checkpointed, MALLOC_MMAP_THRESHOLD_="65536")
        rows.append(
            {
                "dtype": dtype.name,
                "activation_checkpointing": checkpointed,
                "predicted_bytes": step.needed_bytes,
                "measured_bytes": measured,
                "predicted_over_measured": round(step.needed_bytes / measured, 3),
                "predicted_bytes_of_tensors": step.peak_bytes,
                "measured_bytes_of_tensors": tensors,
                "seconds_to_predict": round(seconds, 2),
                "kinds": dict(step.kinds),
            }
        )
        print(json.dumps(rows[-1]))  # noqa: T201  (a script)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args().measure
    if asked:
        print(measure(dtype_named(asked[0]), checkpointed=asked[1] == "1"))  # noqa: T201
    else:
        write_results("training_memory", compare())
