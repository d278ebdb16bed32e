"""A `GradScaler` of the program's own in a guarded loop: refused before anything is scaled twice, or left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from safe_dtype.errors import TrainingLoopError
from safe_dtype.training import PrecisionGuard, TorchLoop

NAMES = {"bfloat16": "bf16", "float16": "fp16"}  # of accelerate


@pytest.mark.parametrize("call", ["step", "unscale_"])
@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
def test_a_scaler_of_the_program(dtype: str, uses_accelerate: bool, call: str) -> None:
    """It would leave out a step that the guard runs again, and scale a loss twice: nothing is stepped."""
    layer: Any = nn.Linear(4, 1)
    weight, before = layer.weight, layer.weight.detach().clone()
    optimizer: Any = torch.optim.SGD(layer.parameters())
    if uses_accelerate:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        loop: Any = Accelerator(mixed_precision=NAMES[dtype], cpu=True)
        layer, optimizer = loop.prepare(layer, optimizer)
        guard = PrecisionGuard(loop, layer)
    else:
        loop = TorchLoop(layer, optimizer, dtype)
        guard = PrecisionGuard(loop)
    scaler = torch.amp.GradScaler("cpu")

    def attempted() -> None:
        with next(guard.attempts()):
            loop.backward(scaler.scale(layer(torch.ones(2, 4)).float().mean()))
            getattr(scaler, call)(optimizer)

    with pytest.raises(TrainingLoopError, match=r"GradScaler of your own.*Next: leave it out"):
        attempted()
    assert torch.equal(weight, before)
    assert torch.amp.GradScaler.step.__module__ == torch.amp.GradScaler.__module__  # as torch has it
    assert not hasattr(torch.amp.GradScaler.step, "__wrapped__")


def test_scalers_that_do_nothing_here() -> None:
    """One that is not enabled, and one of another optimizer, are left alone."""
    layer, other = nn.Linear(4, 1), nn.Linear(4, 1)
    optimizer, elsewhere = torch.optim.SGD(layer.parameters()), torch.optim.SGD(other.parameters())
    loop = TorchLoop(layer, optimizer, "bfloat16")
    guard = PrecisionGuard(loop)
    disabled, enabled = torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu")
    for attempt in guard.attempts():
        with attempt:
            enabled.scale(other(torch.ones(2, 4)).mean()).backward()
            enabled.step(elsewhere)
            loop.backward(disabled.scale(layer(torch.ones(2, 4)).mean()))
            disabled.step(optimizer)
    assert guard.windows_done == 1
