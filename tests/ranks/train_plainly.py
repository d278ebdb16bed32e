"""A job for tests of restarts: a plain loop of accelerate, whose rank 1 fails in bfloat16 between two collectives.

Each rank leaves a file at the end. Nothing in it knows of safe_dtype.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

STEPS, FAILING_STEP = 5, 2
FOLDER = Path(os.environ["JOB_FOLDER"])


class Net(nn.Module):
    """Two layers; on rank 1 attention has no kernel for bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 1)
        self.step = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        hidden = self.inner(rows)
        if self.step == FAILING_STEP and os.environ["RANK"] == "1" and hidden.dtype == torch.bfloat16:
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        loss: torch.Tensor = self.outer(torch.tanh(hidden)).float().pow(2).mean()
        return loss


def main() -> None:
    """Train from the last checkpoint to the end."""
    accelerator = Accelerator()
    torch.manual_seed(0)
    model: Any = Net()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    file, first = FOLDER / "checkpoint.pt", 0
    if file.exists():
        state = torch.load(file)
        model.load_state_dict(state["model"])
        first = state["step"]
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(first, STEPS):
        model.module.step = step
        torch.manual_seed(100 * step + accelerator.process_index)
        accelerator.backward(model(torch.randn(4, 8)))
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.is_main_process:
            torch.save({"model": model.module.state_dict(), "step": step + 1}, FOLDER / "unfinished.pt")
            (FOLDER / "unfinished.pt").replace(file)
        accelerator.wait_for_everyone()
    end = {
        "attempt": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
        "precision": accelerator.mixed_precision,
        "first": first,
    }
    (FOLDER / f"end {accelerator.process_index}").write_text(json.dumps(end))
    accelerator.end_training()


if __name__ == "__main__":
    main()
