"""DeepSpeed, where it is installed: an engine by hand is refused by name, and so is that of the Trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from ranks.processes import Launch, run_ranks
from torch import nn
from training.trainer_runs import Setting, run

from safe_dtype import PrecisionGuard, TorchLoop, float32_masters
from safe_dtype.errors import NeedsRestart, TrainingLoopError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def refusals(stage: int) -> list[str]:
    """Return how each way to guard an engine ends, after a step of it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    model = nn.Linear(8, 2)
    adam = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}}
    config = {
        "train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": stage}, "bf16": {"enabled": True},
        "optimizer": adam,
    }  # fmt: skip
    engine, optimizer, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    loss = engine(torch.ones(2, 8, dtype=torch.bfloat16)).float().mean()
    engine.backward(loss)
    engine.step()
    AcceleratorState._reset_state()
    GradientState._reset_state()
    ways: list[Callable[[], Any]] = [
        lambda: PrecisionGuard(engine),
        lambda: PrecisionGuard(TorchLoop(engine, optimizer)),
        lambda: PrecisionGuard(TorchLoop(model, optimizer)),
        lambda: PrecisionGuard(TorchLoop(engine, optimizer.optimizer)),
        lambda: PrecisionGuard(Accelerator(cpu=True), engine),
        lambda: float32_masters(engine),
        lambda: PrecisionGuard(TorchLoop(torch.compile(engine), optimizer.optimizer)),
        lambda: PrecisionGuard(TorchLoop(nn.Sequential(engine, nn.Identity()), optimizer.optimizer)),
        lambda: PrecisionGuard(Accelerator(cpu=True), torch.compile(engine)),
    ]
    return [_ending(way) for way in ways]


def _ending(way: Callable[[], Any]) -> str:
    try:
        way()
    except TrainingLoopError as exc:
        return str(exc)
    return "was made"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_engine_is_refused(stage: int) -> None:
    """By its name, with what to do: it steps itself, so that nothing could be held back."""
    pytest.importorskip("deepspeed")
    first, second = run_ranks(refusals, 2, stage, launch=Launch(seconds=170, group_seconds=150))
    assert first == second
    assert all("has backward, step and loss scale of its own" in text for text in first), first
    assert "DeepSpeedEngine of DeepSpeed, inside of a OptimizedModule, has backward" in first[-1]
    assert all("Next: train it as it is" in text for text in first)


def test_a_config_of_the_trainer() -> None:
    """A Trainer whose engine is DeepSpeed's is refused by its name, with what to train by instead, on a CPU as elsewhere."""
    pytest.importorskip("deepspeed")
    zero = {
        "zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}, "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto", "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    with pytest.raises(NeedsRestart, match=r"DeepSpeed has its precision built in.*Next: train it without the guard"):
        run(Setting(arguments={"deepspeed": zero, "optim": "adamw_torch"}))
