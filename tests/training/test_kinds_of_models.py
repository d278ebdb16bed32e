"""What models and optimizers do besides products: none of it shows that a window ran twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from training.loops import BF16, computes_in

from safe_dtype import FLOAT16
from safe_dtype.testing import TEXTS
from safe_dtype.training import PrecisionGuard, TorchLoop

TEXT = TEXTS["not_implemented"]


class Failing(nn.Module):
    """A product that fails once its turn has come, in bfloat16 alone."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.fails = False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the product, or fail."""
        if self.fails and computes_in() is BF16:
            raise RuntimeError(TEXT)
        return torch.tanh(self.inner(hidden))


class Checkpointed(nn.Module):
    """Dropout and products that are computed a second time in backward."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.first, self.drop, self.failing = nn.Linear(8, 8), nn.Dropout(0.3), Failing()
        self._use_reentrant = use_reentrant

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute in two checkpoints."""
        run = partial(checkpoint, use_reentrant=self._use_reentrant)
        hidden = run(lambda x: self.drop(self.first(x)), inputs.requires_grad_())
        output: torch.Tensor = run(lambda x: self.drop(self.failing(x)), hidden)
        return output


class Moving(nn.Module):
    """A teacher that follows its student in forward, a queue, and a spectral norm: all are changed by a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = Failing()
        self.teacher = nn.Linear(8, 8).requires_grad_(requires_grad=False)
        self.register_buffer("queue", torch.zeros(4, 8))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Change all of it, then fail."""
        with torch.no_grad():
            for ours, students in zip(self.teacher.parameters(), self.failing.inner.parameters(), strict=True):
                ours.mul_(0.9).add_(students, alpha=0.1)
            self.queue[self.place % 4] = self.teacher(inputs)[0].float()
            self.place += 1
        output: torch.Tensor = self.failing(self.spectral(inputs)) + self.queue.mean(0)
        return output


def plain() -> nn.Module:
    """Return a small model with dropout and statistics."""
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), Failing())


def train(
    make: Callable[[], nn.Module], optimizer: Callable[..., torch.optim.Optimizer], *, fails: bool,
    wrap: Callable[[nn.Module], Any] = lambda model: model,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Train for five windows; the third fails in bfloat16, or begins in float16."""
    torch.manual_seed(0)
    model = make()
    failing = next(module for module in model.modules() if isinstance(module, Failing))
    stepped = optimizer(model.parameters(), lr=0.01)
    called = wrap(model)
    loop = TorchLoop(called, stepped, init_scale=256.0)
    guard = PrecisionGuard(loop)
    losses = []
    for step in range(5):
        if step == 2 and not fails:
            loop.switch(FLOAT16)
        inputs = torch.randn(6, 8)
        for attempt in guard.attempts():
            with attempt:
                failing.fails = step == 2
                with loop.autocast():
                    loss = called(inputs.clone()).square().mean()
                loop.backward(loss)
                stepped.step()
                stepped.zero_grad()
        losses.append(loss.detach())
    assert [event.step for event in guard.events] == ([2] if fails else [])
    states = {f"{name} {place}": value for place, state in enumerate(stepped.state.values())
              for name, value in state.items() if isinstance(value, torch.Tensor)}  # fmt: skip
    return {**model.state_dict(), **states, "losses": torch.stack(losses), "random": torch.get_rng_state()}


ADAMW = torch.optim.AdamW


@pytest.mark.parametrize(
    ("make", "optimizer", "wrap"),
    [
        pytest.param(plain, ADAMW, None, id="statistics-and-dropout"),
        pytest.param(plain, partial(ADAMW, fused=True), None, id="fused-optimizer"),
        pytest.param(plain, partial(ADAMW, foreach=True), None, id="foreach-optimizer"),
        pytest.param(plain, partial(torch.optim.SGD, momentum=0.9), None, id="momentum"),
        pytest.param(partial(Checkpointed, use_reentrant=True), ADAMW, None, id="checkpoints-reentrant"),
        pytest.param(partial(Checkpointed, use_reentrant=False), ADAMW, None, id="checkpoints"),
        pytest.param(Moving, ADAMW, None, id="what-forward-changes"),
        pytest.param(plain, ADAMW, partial(torch.compile, backend="eager"), id="compiled-eager"),
        pytest.param(plain, ADAMW, partial(torch.compile, backend="aot_eager"), id="compiled-aot"),
    ],
)
def test_no_trace_of_a_failed_attempt(
    make: Callable[[], nn.Module], optimizer: Callable[..., Any], wrap: Callable[[nn.Module], Any] | None
) -> None:
    """Weights, states, statistics, teachers, queues, losses and random numbers are those of a run that switched."""
    wrap = wrap or (lambda model: model)
    failed = train(make, optimizer, fails=True, wrap=wrap)
    switched = train(make, optimizer, fails=False, wrap=wrap)
    assert [name for name, value in failed.items() if not torch.equal(value, switched[name])] == []
