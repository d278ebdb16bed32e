"""A program that generates with a tensor parallel model, which fails on rank 1 in bfloat16 between two collectives.

Each rank leaves a file at the end. Nothing in it knows of safe_dtype, but for how long a rank that failed waits.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

FAILING_STEP = 6  # of no new shapes: nobody watches its kernels


class Activation(nn.Module):
    """An activation that a library of its own has for float16 and float32 alone."""

    calls = 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return what it gives."""
        Activation.calls += 1
        if Activation.calls > FAILING_STEP and os.environ["RANK"] == "1" and values.dtype == torch.bfloat16:
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        return nn.functional.silu(values)


def main(source: str, folder: Path) -> None:
    """Generate, and leave what came of it."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", tp_plan="auto")
    model.model.layers[0].mlp.act_fn = Activation()
    if "safe_dtype" in sys.modules:
        from safe_dtype.ranks import tensor_parallel

        tensor_parallel.SECONDS_AFTER_AN_ERROR = 2.0
    tokens = model.generate(torch.arange(1, 9)[None], max_new_tokens=9, do_sample=False)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    end = {"attempt": attempt, "dtype": str(model.dtype), "tokens": tokens[0].tolist()}
    (folder / f"end {os.environ['RANK']}").write_text(json.dumps(end))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(os.environ["JOB_FOLDER"]))
