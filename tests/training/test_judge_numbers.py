"""Numbers of a window: which of them make a step unfit, in each of the ways in which they are looked at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safe_dtype.ranks import Vote
from safe_dtype.training.judge_numbers import Numbers, judge

NAN, INF = float("nan"), float("inf")


def optimizer_with(*gradients: torch.Tensor | None) -> torch.optim.Optimizer:
    """Return an optimizer of parameters that have these gradients."""
    parameters = [nn.Parameter(torch.zeros(2) if one is None else torch.zeros_like(one)) for one in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize(
    ("loss", "gradient", "vote", "reason"),
    [
        pytest.param(1.0, 1.0, Vote.OK, "", id="all-is-well"),
        pytest.param(NAN, 1.0, Vote.FALL_BACK, "the loss is not finite", id="loss"),
        pytest.param(1.0, INF, Vote.FALL_BACK, "gradients are not finite", id="gradient"),
        pytest.param(1.0, 3e38, Vote.OK, "", id="only-its-square-overflows"),
    ],
)
def test_without_a_scaler(loss: float, gradient: float, vote: Vote, reason: str) -> None:
    """One bad number among many is found, and a square that overflows is none."""
    numbers = Numbers()
    numbers.add_loss(torch.tensor(loss))
    optimizer = optimizer_with(torch.ones(3), None, torch.tensor([1.0, gradient]))
    judgement = judge(numbers, [optimizer], None, 1.0)
    assert (judgement.vote, judgement.reason) == (vote, reason)
    assert judgement.is_loss_alone == (loss != loss)


def test_a_norm_speaks_for_its_parameters_alone() -> None:
    """Gradients that were not clipped are looked at themselves."""
    optimizer = optimizer_with(torch.ones(3), torch.tensor([INF]))
    clipped = optimizer.param_groups[0]["params"][:1]
    numbers = Numbers()
    numbers.add_norm(torch.nn.utils.clip_grad_norm_(clipped, 1.0), clipped)
    assert judge(numbers, [optimizer], None, 1.0).vote is Vote.FALL_BACK
    numbers.add_norm(torch.tensor(2.0), optimizer.param_groups[0]["params"])
    assert judge(numbers, [optimizer], None, 1.0).vote is Vote.OK


def test_a_norm_does_not_speak_for_gradients_of_a_later_pass() -> None:
    """What is zeroed after it was clipped, and computed anew, is looked at itself."""
    optimizer = optimizer_with(torch.tensor([INF]))
    numbers = Numbers()
    numbers.add_norm(torch.tensor(2.0), optimizer.param_groups[0]["params"])
    numbers.add_loss(torch.tensor(1.0))
    assert judge(numbers, [optimizer], None, 1.0).vote is Vote.FALL_BACK


def test_sparse_gradients_are_looked_at() -> None:
    """Of an embedding, too."""
    sparse = torch.tensor([1.0, NAN, 0.0]).to_sparse()
    assert judge(Numbers(), [optimizer_with(sparse)], None, 1.0).vote is Vote.FALL_BACK


@pytest.mark.parametrize(
    ("loss", "gradient", "scale", "vote"),
    [
        pytest.param(1.0, 1.0, 8.0, Vote.OK, id="all-is-well"),
        pytest.param(1.0, INF, 8.0, Vote.RETRY, id="a-smaller-scale-may-help"),
        pytest.param(1.0, INF, 1.0, Vote.FALL_BACK, id="no-smaller-scale-is-left"),
        pytest.param(INF, INF, 8.0, Vote.FALL_BACK, id="no-scale-cures-a-loss"),
        pytest.param(NAN, 1.0, 8.0, Vote.FALL_BACK, id="a-loss-alone"),
    ],
)
def test_with_a_scaler(loss: float, gradient: float, scale: float, vote: Vote) -> None:
    """It looks at the gradients while it unscales them, once."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(1))
    optimizer = optimizer_with(torch.tensor([1.0, gradient]) * scale)
    numbers = Numbers()
    numbers.add_loss(torch.tensor(loss))
    assert judge(numbers, [optimizer], scaler, 1.0).vote is vote
    judgement = judge(numbers, [optimizer], scaler, 1.0)
    assert judgement.vote is vote
    assert judgement.is_loss_alone == (loss != loss and gradient == 1.0)
    assert optimizer.param_groups[0]["params"][0].grad[0] == 1.0


def test_loss_without_its_scale() -> None:
    """Gradients of `loss.backward()`, which a scaler has not seen, are not those of float16: the next dtype has no scale."""
    layer = nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer = torch.optim.SGD(layer.parameters())
    assert judge(Numbers(), [optimizer], torch.amp.GradScaler("cpu"), 1.0).vote is Vote.FALL_BACK
