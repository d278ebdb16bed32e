"""A job for tests of restarts: FSDP2, whose rank 1 fails in the middle of a step, between two collectives of the engine.

What it is to do comes in the environment: BAD, dtypes in which that raises; KILLED, whether it is killed there, once; TEXT,
of the exception. Each rank leaves a file at the end.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

STEPS, FAILING_STEP = 6, 3
FOLDER = Path(os.environ["JOB_FOLDER"])
ATTEMPT, RANK = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])


class Net(nn.Module):
    """Three blocks and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 64)
        self.step = 0

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss; on rank 1 fail between the second block and the third."""
        hidden = self.embedding(tokens)
        for number, block in enumerate(self.blocks):
            hidden = hidden + torch.tanh(block(hidden))
            if number == 1 and RANK == 1 and self.step == FAILING_STEP:
                fail_in(str(hidden.dtype).removeprefix("torch."))
        return nn.functional.cross_entropy(self.head(hidden).float().flatten(0, 1), labels.flatten())


def fail_in(dtype: str) -> None:
    """Raise in a bad dtype, or be killed."""
    if os.environ.get("KILLED") and ATTEMPT == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if dtype in os.environ.get("BAD", "").split(","):
        raise RuntimeError(os.environ.get("TEXT", "FlashAttention only supports Ampere GPUs or newer."))


def main() -> None:
    """Train from the last checkpoint to the end."""
    from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
    from safe_dtype.ranks import current_world, failed_dtypes, first_allowed

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Net()
    failed = failed_dtypes(current_world(), "cpu", model)
    chosen = first_allowed((BFLOAT16, FLOAT16, FLOAT32), failed)
    dtype = getattr(torch, chosen.name)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype)
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = load(model, optimizer)
    for step in range(first, STEPS):
        model.step = step
        generator = torch.Generator().manual_seed(1000 * step + RANK)
        tokens = torch.randint(0, 64, (4, 8), generator=generator)
        model(tokens, tokens.roll(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        save(model, optimizer, step + 1)
    weights = torch.cat([one.detach().full_tensor().flatten() for one in model.parameters()])  # type: ignore[attr-defined]
    end = {"rank": RANK, "attempt": ATTEMPT, "dtype": chosen.name, "first": first, "sum": float(weights.double().sum()),
           "failed": failed}  # fmt: skip
    (FOLDER / f"end {RANK}").write_text(json.dumps(end))
    dist.barrier()
    dist.destroy_process_group()


def load(model: Any, optimizer: Any) -> int:
    """Load the checkpoint where there is one; return the step to begin with."""
    file = FOLDER / "checkpoint.pt"
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=False)
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options
    )
    return int(state["step"])


def save(model: Any, optimizer: Any, step: int) -> None:
    """Write the checkpoint, on rank 0; all wait for it."""
    weights, states = get_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if RANK == 0:
        torch.save({"model": weights, "optimizer": states, "step": step}, FOLDER / "unfinished.pt")
        (FOLDER / "unfinished.pt").replace(FOLDER / "checkpoint.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
