"""The job of `recovery.py`: two ranks train in bfloat16, and rank 1 fails at a step; guarded, or as a plain loop.

Each rank appends a line to `FOLDER/rank N` for every step that it has ended, and for the failure: what, when, at which
attempt.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from safe_dtype.training import PrecisionGuard

STEPS, FAILING_STEP, CHECKPOINT_EVERY = 40, 25, 10
WIDTH = 512
FOLDER = Path(os.environ.get("JOB_FOLDER", "."))
ATTEMPT = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


class Net(nn.Module):
    """Some layers; on rank 1 one of them has no kernel for bfloat16 at one step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(8))
        self.step = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        for number, layer in enumerate(self.layers):
            rows = torch.tanh(layer(rows))
            if (
                number == 3
                and self.step == FAILING_STEP
                and rows.dtype == torch.bfloat16
                and os.environ["RANK"] == "1"
            ):
                note("failed", self.step)
                raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        loss: torch.Tensor = rows.float().pow(2).mean()
        return loss


def note(what: str, step: int) -> None:
    """Append a line to the file of this rank."""
    with (FOLDER / f"rank {os.environ['RANK']}").open("a", encoding="utf-8") as file:
        file.write(f"{what} {step} {time.time():.6f} {ATTEMPT}\n")


def main() -> None:
    """Train from the last checkpoint to the end."""
    accelerator = Accelerator()
    torch.manual_seed(0)
    model: Any = Net()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    checkpoint, first = FOLDER / "checkpoint", 0
    if (done := FOLDER / "steps").exists():
        first = int(done.read_text())
        accelerator.load_state(str(checkpoint))
    guard = PrecisionGuard(accelerator, model) if os.environ["WAY"] == "in place" else None
    for step in range(first, STEPS):
        model.module.step = step
        torch.manual_seed(100 * step + accelerator.process_index)
        rows = torch.randn(256, WIDTH)
        if guard is None:
            one_step(accelerator, model, optimizer, rows)
        else:
            for attempt in guard.attempts():
                with attempt:
                    one_step(accelerator, model, optimizer, rows)
        note("ended", step)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            accelerator.save_state(str(checkpoint))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                done.write_text(str(step + 1))
    accelerator.end_training()


def one_step(accelerator: Any, model: Any, optimizer: Any, rows: torch.Tensor) -> None:
    """Run one step of the optimizer."""
    accelerator.backward(model(rows))
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
