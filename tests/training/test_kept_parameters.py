"""Of a window that failed nothing stays in parameters that are not trained, whether replaced or given other numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from safe_dtype import FLOAT16, PrecisionGuard, TorchLoop
from safe_dtype.testing import TEXTS
from safe_dtype.training.kept_parameters import KeptParameters


class Student(nn.Module):
    """A layer that is trained, and a teacher that follows it in forward."""

    def __init__(self, follow: Callable[[nn.Linear, torch.Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.teacher = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
        self.follow = follow
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of both, once the teacher has followed."""
        with torch.no_grad():
            self.follow(self.teacher, self.teacher.weight * 0.9 + self.layer.weight * 0.1)
        if self.fails and torch.get_autocast_dtype("cpu") is torch.bfloat16:
            raise RuntimeError(TEXTS["not_implemented"])
        output: torch.Tensor = self.layer(x) + self.teacher(x)
        return output


def _replace(teacher: nn.Linear, weight: torch.Tensor) -> None:
    teacher.weight = nn.Parameter(weight, requires_grad=False)


def _give_numbers(teacher: nn.Linear, weight: torch.Tensor) -> None:
    teacher.weight.data = weight


def _in_place(teacher: nn.Linear, weight: torch.Tensor) -> None:
    teacher.weight.copy_(weight)


def _all_in_turn(teacher: nn.Linear, weight: torch.Tensor) -> None:
    _replace(teacher, weight)
    _in_place(teacher, teacher.weight * 1.5)
    _give_numbers(teacher, teacher.weight * 0.5)


WAYS = {"replaced": _replace, "data": _give_numbers, "in place": _in_place, "all": _all_in_turn}


def trained(way: str, fails_at: int, first: str = "bfloat16") -> tuple[Student, PrecisionGuard]:
    """Train six windows, of which one fails in bfloat16."""
    model = Student(WAYS[way])
    loop = TorchLoop(model, torch.optim.SGD(model.parameters(), lr=0.1), first, init_scale=4.0)
    guard = PrecisionGuard(loop)
    for step, window in enumerate(guard.windows(torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1)))):
        model.fails = step == fails_at
        if first == "bfloat16" and fails_at < 0 and step == -1 - fails_at:
            loop.switch(FLOAT16)
        for attempt in guard.attempts():
            with attempt:
                for x in window:
                    with loop.autocast():
                        loss = model(x).square().mean()
                    loop.backward(loss)
                loop.optimizers[0].step()
                loop.optimizers[0].zero_grad()
    return model, guard


@pytest.mark.parametrize("step", [0, 1, 4])
@pytest.mark.parametrize("way", WAYS)
def test_the_teacher_is_that_of_the_run_that_switched_there(way: str, step: int) -> None:
    """It has followed once in each window, from the first one on."""
    failed, guard = trained(way, step)
    assert guard.dtype == FLOAT16
    switched, _ = trained(way, -1 - step)
    assert all(map(torch.equal, failed.parameters(), switched.parameters()))


def test_numbers_of_a_tensor_that_was_given_back() -> None:
    """As often as the window runs again, and into the very parameter that it had."""
    layer = nn.Linear(4, 4).requires_grad_(False)
    weight, values = layer.weight, layer.weight.clone()
    parameters = KeptParameters([layer])
    parameters.keep()
    for _ in range(3):
        with parameters.noticed():
            layer.weight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
            layer.weight = nn.Parameter(torch.ones(4, 4), requires_grad=False)
        parameters.put_back()
        assert layer.weight is weight
        assert torch.equal(layer.weight, values)


def test_other_modules_are_left_alone() -> None:
    """What is made in forward, and what belongs to no model of the loop, stays."""
    layer, other = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)
    parameters = KeptParameters([layer])
    parameters.keep()
    with parameters.noticed():
        other.weight = replaced = nn.Parameter(torch.zeros(4, 4))
        layer.scale = made = nn.Parameter(torch.ones(4), requires_grad=False)
    parameters.put_back()
    assert (other.weight is replaced, layer.scale is made) == (True, True)
