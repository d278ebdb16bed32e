"""A generator and its discriminator, each with an optimizer: in one window of the guard, or in a window each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from safe_dtype.facts import BFLOAT16, FLOAT16, Dtype
from safe_dtype.training import PrecisionGuard, TorchLoop

REAL = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))
ONES, ZEROS = torch.ones(5, 1), torch.zeros(5, 1)
SCALE = 1024.0


class Pair:
    """Both models, their optimizers, and what computes in some dtype."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.generator: Any = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator: Any = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.steps: list[Any] = [
            torch.optim.Adam(model.parameters(), 0.01) for model in (self.generator, self.discriminator)
        ]
        self.own = [*self.generator.parameters(), *self.discriminator.parameters()]

    def weights(self) -> list[torch.Tensor]:
        """Return all weights and moments."""
        moments = [part for step in self.steps for state in step.state.values() for part in state.values()]
        return [*(weight.detach() for weight in self.own), *moments]

    def losses(self, real: torch.Tensor, noise: torch.Tensor, autocast: Any, backward: Any) -> Iterator[str]:
        """Run the two backward passes, the discriminator's first, and yield whose it was."""
        distance = nn.functional.binary_cross_entropy_with_logits
        generator, discriminator = self.generator, self.discriminator
        with autocast():
            made = generator(noise)
            both = distance(discriminator(real).float(), ONES)
            both = both + distance(discriminator(made.detach()).float(), ZEROS)
        backward(both)
        yield "discriminator"
        discriminator.requires_grad_(False)
        with autocast():
            fooled = distance(discriminator(made).float(), ONES)
        backward(fooled)
        discriminator.requires_grad_(True)
        yield "generator"


def by_hand(dtype: torch.dtype) -> list[torch.Tensor]:
    """Train without a guard: both backward passes, then both steps."""
    pair, scaler = Pair(), torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=dtype is torch.float16)
    torch.manual_seed(5)
    for real in REAL:
        list(
            pair.losses(
                real,
                torch.randn(5, 4),
                lambda: torch.autocast("cpu", dtype),
                lambda loss: scaler.scale(loss).backward(),
            )
        )
        for step in pair.steps:
            scaler.step(step)
        scaler.update()
        for step in pair.steps:
            step.zero_grad()
    return pair.weights()


def guarded(
    dtype: Dtype, uses_accelerate: bool, *, clips: bool = False, fails_at: int = -1, switch: int = -1
) -> tuple[list[torch.Tensor], PrecisionGuard]:
    """Train with a guard; at one step the discriminator gives NaN in bfloat16, or the dtype is changed by hand."""
    pair = Pair()
    if uses_accelerate:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        accelerator = Accelerator(mixed_precision={BFLOAT16: "bf16", FLOAT16: "fp16"}[dtype], cpu=True)
        pair.generator, pair.discriminator, *prepared = accelerator.prepare(
            pair.generator, pair.discriminator, *pair.steps
        )
        guard = PrecisionGuard(accelerator, pair.generator, pair.discriminator, init_scale=SCALE)
        loop: Any = accelerator
    else:
        loop = TorchLoop([pair.generator, pair.discriminator], pair.steps, dtype, init_scale=SCALE)
        guard, prepared = PrecisionGuard(loop), pair.steps
    torch.manual_seed(5)
    for number, window in enumerate(guard.windows(REAL)):
        if number == switch:
            guard.loop.switch(FLOAT16)
        for attempt in guard.attempts():
            with attempt:
                noise = torch.randn(5, 4)
                for real in window:
                    is_bad = number == fails_at and guard.dtype == BFLOAT16
                    for whose in pair.losses(
                        real * (float("nan") if is_bad else 1), noise, loop.autocast, loop.backward
                    ):
                        assert whose in ("generator", "discriminator")
                if clips:
                    loop.clip_grad_norm_(pair.own, 1e9)
                for step in prepared:
                    step.step()
                for step in prepared:
                    step.zero_grad()
    return pair.weights(), guard


@pytest.mark.parametrize("clips", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
def test_gradients_are_unscaled_once(uses_accelerate: bool, clips: bool) -> None:
    """In float16 each optimizer steps with gradients of their own size, in whatever order they step."""
    weights, guard = guarded(FLOAT16, uses_accelerate, clips=clips)
    assert (guard.windows_done, guard.events) == (len(REAL), [])
    assert all(map(torch.equal, weights, by_hand(torch.float16)))


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
def test_neither_steps_where_one_fails(uses_accelerate: bool) -> None:
    """A loss of one model that is not finite holds back both optimizers; the run is that which was switched there."""
    failed, guard = guarded(BFLOAT16, uses_accelerate, fails_at=2)
    switched, _ = guarded(BFLOAT16, uses_accelerate, switch=2)
    assert [event.after for event in guard.events] == [FLOAT16]
    assert all(map(torch.equal, failed, switched))
