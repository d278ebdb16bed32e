"""A model that opens an autocast in its own forward: where float32 fails with it as well, the window runs without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from ranks.processes import run_ranks
from torch import nn
from torch.amp.autocast_mode import autocast
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from training.loops import rank
from training.trainer_runs import Setting, difference
from training.trainer_runs import run as train

from safe_dtype import FLOAT32, NoDtypeLeft
from safe_dtype.errors import StrictModeError
from safe_dtype.training import PrecisionGuard, TorchLoop

AT = 2  # the window that fails
REMEDIES = ["in float16", "in float32", "in float32 without the model's own autocast"]


class Own(nn.Linear):
    """A layer that computes in bfloat16 whatever is around it, and at one window by what has no kernel there."""

    fails = opens = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.opens):
            x = super().forward(x)
            return torch.special.log_ndtr(x) if self.fails else x


@dataclass
class Result:
    """What a run leaves."""

    values: list[torch.Tensor]
    guard: PrecisionGuard


def run(*, by_hand: bool = False, checkpoints: bool | None = None, first: str = "bfloat16") -> Result:
    """Train with dropout in plain torch. `checkpoints`: with a reentrant backward pass or without; None: with none."""
    torch.manual_seed(0)
    own = Own(16, 16)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), own, nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    called = DistributedDataParallel(model) if dist.is_initialized() else model
    loop = TorchLoop(called, optimizer, first)
    guard = PrecisionGuard(loop)
    losses = []
    for step, window in enumerate(guard.windows([torch.randn(4, 8, requires_grad=True) for _ in range(4)])):
        own.fails = step == AT and rank() == 0
        if by_hand and step == AT:
            loop.switch(FLOAT32)
            own.opens = False
        for attempt in guard.attempts():
            with attempt:
                for x in window:
                    with loop.autocast():
                        y = called(x) if checkpoints is None else checkpoint(called, x, use_reentrant=checkpoints)
                        loss = y.float().square().mean()
                    loop.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        losses.append(loss.detach())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return Result([*model.state_dict().values(), *moments, *losses, torch.get_rng_state()], guard)


@pytest.mark.parametrize("checkpoints", [None, False, True], ids=["plain", "checkpointed", "reentrant"])
def test_the_window_runs_without_it(checkpoints: bool | None) -> None:
    """The run is the one in which it was left out by hand from there on."""
    ours, hand = run(checkpoints=checkpoints), run(by_hand=True, checkpoints=checkpoints)
    assert difference(ours.values, hand.values) == ""
    assert [event.remedy for event in ours.guard.events] == REMEDIES


def test_a_run_in_float32() -> None:
    """A run that was in float32 from the beginning has that one thing to change."""
    ours = run(first="float32")
    assert difference(ours.values, run(by_hand=True, first="float32").values) == ""
    assert [(event.before, event.remedy) for event in ours.guard.events] == [(FLOAT32, REMEDIES[-1])]


def _on_a_rank() -> tuple[str, list[str]]:
    ours = run()
    return difference(ours.values, run(by_hand=True).values), [event.remedy for event in ours.guard.events]


@pytest.mark.slow
def test_all_ranks_leave_it_out_together() -> None:
    """It fails on one of two, and both go on without it."""
    assert run_ranks(_on_a_rank, 2) == [("", REMEDIES)] * 2


def test_classes_are_left_as_they_were() -> None:
    """Between two attempts nothing of torch is wrapped."""
    before = vars(autocast)["__enter__"]
    run()
    assert vars(autocast)["__enter__"] is before


def _window(own: Own, state: Any = None) -> PrecisionGuard:
    """Train one window, from a state of a guard."""
    loop = TorchLoop(own, torch.optim.SGD(own.parameters(), lr=0.1))
    guard = PrecisionGuard(loop)
    guard.load_state_dict(state or guard.state_dict())
    for attempt in guard.attempts():
        with attempt:
            loop.backward(own(torch.randn(2, 4)).mean())
            loop.optimizers[0].step()
    return guard


def test_a_state_has_it() -> None:
    """A run that goes on from a checkpoint leaves it out from its first window on."""
    assert _window(Own(4, 4), run().guard.state_dict()).events == []


def test_where_it_is_no_help() -> None:
    """The error has a line for each thing that was tried."""
    own = Own(4, 4)
    own.weight.data.fill_(torch.nan)
    with pytest.raises(NoDtypeLeft) as caught:
        _window(own)
    assert [str(one).partition(":")[0] for one in caught.value.attempts] == ["in bfloat16", *REMEDIES]


def _with_own(model: Any) -> Any:
    down = model.model.layers[1].mlp.down_proj
    model.model.layers[1].mlp.down_proj = Own(down.in_features, down.out_features)
    return model


def test_a_trainer() -> None:
    """An attached Trainer makes all its steps, and its checkpoint has what it left out."""
    AcceleratorState._reset_state(True)
    ours = train(Setting(change=_with_own))
    assert ours.error is None
    assert ours.trainer.state.global_step == 5
    assert [row["precision"] for row in ours.rows] == ["float32"] * 5


def test_a_strict_trainer() -> None:
    """In strict mode it is the error that it is, in float32 too."""
    AcceleratorState._reset_state(True)
    ours = train(Setting(change=_with_own, policy="strict", dtype=FLOAT32))
    assert type(ours.error) is StrictModeError
    assert "Would work: none. Next: see the cause above. The step was" in str(ours.error)


def test_a_trainer_that_is_resumed(tmp_path: Path) -> None:
    """It goes on without it, and fails no more."""
    AcceleratorState._reset_state(True)
    folder, arguments = str(tmp_path), {"save_strategy": "steps", "save_steps": 3}
    train(Setting(change=_with_own, folder=folder, arguments=arguments, steps=3))
    AcceleratorState._reset_state(True)
    resumed = train(Setting(change=_with_own, folder=folder, arguments=arguments, resume=True))
    assert resumed.error is None
    assert resumed.passes == 2
