"""Two optimizers, of which one steps with every second window and keeps its gradients until then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.training import PrecisionGuard, TorchLoop

BATCHES = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))
SCALE = 2.0**10
SPELLED = {BFLOAT16: "BFloat16", FLOAT16: "Half"}
Trained = tuple[list[torch.Tensor], PrecisionGuard]


def pair() -> tuple[list[Any], list[Any]]:
    """Return two small models, always the same, and their optimizers."""
    torch.manual_seed(0)
    models = [nn.Linear(8, 8), nn.Linear(8, 1)]
    return models, [torch.optim.AdamW(model.parameters(), 0.05) for model in models]


def prepared(dtype: Dtype, *, uses_accelerate: bool, init_scale: float = SCALE) -> tuple[Any, Any, Any, Any]:
    """Return a guard, its loop, its models and its optimizers."""
    models, optimizers = pair()
    if not uses_accelerate:
        loop = TorchLoop(models, optimizers, dtype, init_scale=init_scale)
        return PrecisionGuard(loop), loop, models, optimizers
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(mixed_precision={BFLOAT16: "bf16", FLOAT16: "fp16"}[dtype], cpu=True)
    models, optimizers = [list(kind) for kind in (accelerator.prepare(*models), accelerator.prepare(*optimizers))]
    return PrecisionGuard(accelerator, *models, init_scale=init_scale), accelerator, models, optimizers


def loss_of(models: list[Any], rows: torch.Tensor) -> torch.Tensor:
    """Return a loss."""
    loss: torch.Tensor = models[1](models[0](rows)).float().square().mean()
    return loss


def guarded(  # noqa: PLR0913  (all but the dtype by name)
    dtype: Dtype, *, uses_accelerate: bool, init_scale: float = SCALE, fails_at: int = -1, raises: bool = False,
    clips: bool = False, zeroes: Callable[[int, Any], object] = lambda *_: None,
) -> Trained:  # fmt: skip
    """Train with a guard; at one window the loss is NaN in the first dtype, or forward raises. `zeroes` is called before each pass."""
    guard, loop, models, (every, second) = prepared(dtype, uses_accelerate=uses_accelerate, init_scale=init_scale)
    for number, window in enumerate(guard.windows(BATCHES)):
        for attempt in guard.attempts():
            with attempt:
                zeroes(number, second)
                fails = number == fails_at and guard.dtype == dtype
                if fails and raises:
                    raise RuntimeError(f"\"gate\" not implemented for '{SPELLED[dtype]}'")
                with loop.autocast():
                    loss = loss_of(models, window[0])
                loop.backward(loss * (float("nan") if fails else 1))
                if clips:
                    loop.clip_grad_norm_([weight for model in models for weight in model.parameters()], 1e-3)
                every.step()
                every.zero_grad()
                if number % 2:
                    second.step()
                    second.zero_grad()
    return [weight.detach() for model in models for weight in model.parameters()], guard


def by_hand(dtype: torch.dtype, then: torch.dtype | None = None, *, other_from: int = 99) -> list[torch.Tensor]:
    """Train the same by hand, each pass with a scale that its gradients lose before they are added."""
    models, (every, second) = pair()
    weights = [weight for model in models for weight in model.parameters()]
    for number, rows in enumerate(BATCHES):
        kind = then if number >= other_from and then is not None else dtype
        scale = SCALE if kind is torch.float16 else 1.0
        with torch.autocast("cpu", kind, enabled=kind is not torch.float32):
            loss = loss_of(models, rows)
        for weight, gradient in zip(weights, torch.autograd.grad(loss * scale, weights), strict=True):
            weight.grad = gradient / scale if weight.grad is None else weight.grad + gradient / scale
        every.step()
        every.zero_grad()
        if number % 2:
            second.step()
            second.zero_grad()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
def test_gradients_of_two_windows(uses_accelerate: bool) -> None:
    """In float16 those that one window left have no scale, and are added to those of the next without theirs."""
    weights, guard = guarded(FLOAT16, uses_accelerate=uses_accelerate)
    assert (guard.windows_done, guard.events) == (len(BATCHES), [])
    assert all(map(torch.equal, weights, by_hand(torch.float16)))


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
@pytest.mark.parametrize("raises", [False, True], ids=["NaN", "before any pass"])
@pytest.mark.parametrize(("first", "then"), [(BFLOAT16, FLOAT16), (FLOAT16, FLOAT32)], ids=str)
def test_a_window_that_runs_again_begins_with_them(
    first: Dtype, then: Dtype, raises: bool, uses_accelerate: bool
) -> None:
    """A step down in the second of two windows keeps what the first one has left, without a scale."""
    weights, guard = guarded(first, uses_accelerate=uses_accelerate, fails_at=3, raises=raises)
    assert [event.after for event in guard.events] == [then]
    first_type, then_type = getattr(torch, first.name), getattr(torch, then.name)
    for ours, theirs in zip(weights, by_hand(first_type, then_type, other_from=3), strict=True):
        # after float16, float32 begins with a scale of its own again: one rounding
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_half_the_scale_in_the_second_window() -> None:
    """Gradients that overflow with the scale have it halved, and those of the window before once more with each."""
    weights, guard = guarded(FLOAT16, uses_accelerate=False, init_scale=2.0**20)
    assert {event.after for event in guard.events} == {FLOAT16}
    for ours, theirs in zip(weights, by_hand(torch.float16), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
def test_clipped_with_those_of_the_window_before(uses_accelerate: bool) -> None:
    """The norm is that of the sums: as in bfloat16, where nothing has a scale."""
    scaled, guard = guarded(FLOAT16, uses_accelerate=uses_accelerate, clips=True)
    plain, _ = guarded(BFLOAT16, uses_accelerate=uses_accelerate, clips=True)
    assert guard.events == []
    for ours, theirs in zip(scaled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("sets_to_none", [True, False])
def test_gradients_that_are_zeroed_late(sets_to_none: bool) -> None:
    """A `zero_grad` before the first pass of a window is none of the guard's business: nothing is copied for it."""
    guard, loop, models, (every, second) = prepared(FLOAT16, uses_accelerate=False)
    for window in guard.windows(BATCHES):
        for attempt in guard.attempts():
            with attempt:
                for optimizer in (every, second):
                    optimizer.zero_grad(set_to_none=sets_to_none)
                with loop.autocast():
                    loss = loss_of(models, window[0])
                loop.backward(loss)
                assert not any(gradient is not None for _, gradient in guard._gradients._kept)
                every.step()
                second.step()
    assert guard.windows_done == len(BATCHES)


def test_gradients_of_an_attempt_that_was_left() -> None:
    """What an exception of the program has left has its scale yet, and gets no second one."""
    guard, loop, models, _ = prepared(FLOAT16, uses_accelerate=False)
    seen = []

    def interrupted(rows: torch.Tensor) -> None:
        for attempt in guard.attempts():
            with attempt:
                with loop.autocast():
                    loss = loss_of(models, rows)
                loop.backward(loss)
                seen.append(models[0].weight.grad.abs().max())
                raise KeyboardInterrupt

    for rows in BATCHES[:2]:
        with pytest.raises(KeyboardInterrupt):
            interrupted(rows)
    assert seen[1] < 8 * seen[0]
