"""Optimizers go on after a change of the dtype of their parameters."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from guarding.nobody_guarded import nobody_guarded  # noqa: F401  (a fixture)
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks
from transformers.optimization import Adafactor

from safe_dtype import FLOAT32, guard, report
from safe_dtype.guarding.remedies.optimizer_states import keep_optimizers
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

BF16, FP32 = torch.bfloat16, torch.float32

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "adamw": lambda weights: AdamW(weights, foreach=False),
    "adamw-foreach": lambda weights: AdamW(weights, foreach=True),
    "adamw-fused": lambda weights: AdamW(weights, fused=True),
    "amsgrad": lambda weights: AdamW(weights, amsgrad=True),
    "adafactor": torch.optim.Adafactor,
    "adafactor-of-transformers": Adafactor,
    "sgd-with-momentum": lambda weights: SGD(weights, lr=0.1, momentum=0.9),
}


def tiny() -> Any:
    """Return a model in bfloat16."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(BF16)


def learn(model: Any, optimizer: Optimizer) -> None:
    """Make one step of training."""
    model.train()
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 16).view(2, 8).to(model[0].weight.dtype)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_goes_on(make: Callable[[Any], Optimizer]) -> None:
    """After a step down in an evaluation, the next steps are those of an optimizer that was cast on purpose."""
    model = guard(tiny())
    optimizer = make(model.parameters())
    for _ in range(2):
        learn(model, optimizer)
    wanted = copy.deepcopy(model).to(FP32)
    wanted_optimizer = make(wanted.parameters())
    wanted_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # which casts states to their parameters
    with torch.no_grad(), fault(model, "1", "cublas"):
        model.eval()(torch.ones(1, 8, dtype=BF16))
    assert report(model).dtype is FLOAT32
    for _ in range(3):
        learn(model, optimizer)
        learn(wanted, wanted_optimizer)
    for weight, same in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(weight, same)
        assert {state.dtype for state in optimizer.state[weight].values() if torch.is_tensor(state)} == {FP32}


def test_before_its_first_step() -> None:
    """An optimizer without states yet, and one of another model, are none of its business."""
    model, other = tiny(), tiny()
    optimizers = [AdamW(model.parameters()), AdamW(other.parameters())]
    learn(other, optimizers[1])
    recast(model, {BF16}, FP32)
    keep_optimizers(model, {BF16})
    learn(model, optimizers[0])
    learn(other, optimizers[1])
    assert optimizers[1].state[other[0].weight]["exp_avg"].dtype is BF16


@pytest.mark.usefixtures("nobody_guarded")
def test_as_long_as_it_is_needed() -> None:
    """The hook on optimizers goes with the model."""
    gc.collect()
    before = len(hooks)
    model = tiny()
    recast(model, {BF16}, FP32)
    keep_optimizers(model, {BF16})
    assert len(hooks) == max(before, 1)  # one for all models of the process
    del model
    gc.collect()
    assert len(hooks) == before
