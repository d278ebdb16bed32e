"""One rank of the measure of recovery: windows of training of which one fails on one rank, in each of several runs."""

from __future__ import annotations

import json
import statistics
import sys
import time

BEGAN = time.perf_counter()  # before torch is imported: that is what a restarted job does first

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from safe_dtype.testing import TEXTS  # noqa: E402
from safe_dtype.training import PrecisionGuard, TorchLoop  # noqa: E402

RUNS, STEPS, FAILING, WIDTH = 9, 12, 6, 384


class _Failing(nn.Module):
    """A layer whose kernel one rank lacks in bfloat16, from one step on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fails = nn.Linear(WIDTH, WIDTH), False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self.inner(values)
        if self.fails and values.dtype == torch.bfloat16:
            raise RuntimeError(TEXTS["not_implemented"])
        return torch.relu(values)


def run() -> tuple[list[float], int]:
    """Return the seconds of each step, and how many steps the optimizer has made."""
    torch.manual_seed(0)
    layers = [_Failing() for _ in range(12)]
    model = nn.Sequential(*layers)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    loop = TorchLoop(ddp, optimizer, "bfloat16")
    guard = PrecisionGuard(loop)
    seconds = []
    for step, _ in enumerate(guard.windows(range(STEPS))):
        for layer in layers:
            layer.fails = step == FAILING and dist.get_rank() == 1 and layer is layers[6]
        started = time.perf_counter()
        for attempt in guard.attempts():
            with attempt:
                with loop.autocast():
                    loss = ddp(torch.ones(64, WIDTH)).square().mean()
                loop.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds, int(next(iter(optimizer.state.values()))["step"])


def main() -> None:
    """Measure, and let rank 0 print."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    runs = [run()]
    until_first_run = time.perf_counter() - BEGAN
    runs += [run() for _ in range(RUNS)]
    figures = {
        "step_ms": statistics.median(second for seconds, _ in runs for second in seconds[2:FAILING]) * 1e3,
        "step_after_in_float16_ms": statistics.median(
            second for seconds, _ in runs for second in seconds[FAILING + 1 :]
        )
        * 1e3,
        "failing_step_ms": statistics.median(seconds[FAILING] for seconds, _ in runs[1:]) * 1e3,
        "steps_lost": STEPS - min(steps for _, steps in runs),
        "steps_made_twice": max(steps for _, steps in runs) - STEPS,
        "restart_s_until_training_goes_on": until_first_run,
    }
    if dist.get_rank() == 0:
        json.dump({name: round(value, 3) for name, value in figures.items()}, sys.stdout)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
