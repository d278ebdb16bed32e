"""A step that clips more than once, as loops in bfloat16 may: in float16 too, where a scaler unscales gradients once a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from safe_dtype.facts import FLOAT32
from safe_dtype.training import PrecisionGuard, TorchLoop

BATCHES = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
SCALE = 1024.0
Clip = Callable[[Any, Any, Any], None]  # of what clips, the model and its optimizer


def layers() -> nn.Module:
    """Return a small model, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def each_part(clips: Any, model: Any, _: Any) -> None:
    """Clip each layer by a norm of its own."""
    clips.clip_grad_norm_(model[0].parameters(), 0.05)
    clips.clip_grad_norm_(model[2].parameters(), 0.1)


def values_and_norm(clips: Any, model: Any, _: Any) -> None:
    """Clip by value, and then by norm."""
    clips.clip_grad_value_(model.parameters(), 0.01)
    clips.clip_grad_norm_(model.parameters(), 0.02)


def unscaled_first(clips: Any, model: Any, optimizer: Any) -> None:
    """Ask for gradients without a scale, of one optimizer and of all, before they are clipped."""
    if hasattr(clips, "unscale_gradients"):
        clips.unscale_gradients(optimizer)
        clips.unscale_gradients()
    clips.clip_grad_norm_(model.parameters(), 0.1)


class OfTorch:
    """Clips as torch does."""

    clip_grad_norm_ = staticmethod(clip_grad_norm_)
    clip_grad_value_ = staticmethod(clip_grad_value_)


def by_hand(clip: Clip) -> list[torch.Tensor]:
    """Train in float16 without a guard, gradients unscaled once and then clipped."""
    model = layers()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.5), torch.amp.GradScaler("cpu", init_scale=SCALE)
    for rows in BATCHES:
        with torch.autocast("cpu", torch.float16):
            loss = model(rows).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip(OfTorch, model, optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return [weight.detach() for weight in model.parameters()]


def accelerated() -> tuple[Accelerator, Any, Any, PrecisionGuard]:
    """Return an Accelerator in float16, what it has prepared, and the guard of both."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(mixed_precision="fp16", cpu=True)
    model = layers()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.5))
    return accelerator, model, optimizer, PrecisionGuard(accelerator, model, init_scale=SCALE)


@pytest.mark.parametrize("clip", [each_part, values_and_norm, unscaled_first])
def test_with_accelerate(clip: Clip) -> None:
    """To the bit what a loop computes that unscales its gradients once, and nothing is left around the Accelerator."""
    accelerator, model, optimizer, guard = accelerated()
    for window in guard.windows(BATCHES):
        for attempt in guard.attempts():
            with attempt:
                for rows in window:
                    accelerator.backward(model(rows).float().square().mean())
                    clip(accelerator, model, optimizer)
                    optimizer.step()
                    optimizer.zero_grad()
    assert guard.events == []
    assert all(map(torch.equal, model.parameters(), by_hand(clip)))
    assert not {"unscale_gradients", "clip_grad_norm_"} & set(vars(accelerator))


@pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "plain"])
def test_in_plain_torch(is_guarded: bool) -> None:
    """`loop.clip_grad_norm_`, inside of an attempt and outside of any."""
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    loop = TorchLoop(model, optimizer, "float16", init_scale=SCALE)

    def passes(rows: torch.Tensor) -> None:
        with loop.autocast():
            loss = model(rows).float().square().mean()
        loop.backward(loss)
        each_part(loop, model, optimizer)

    if is_guarded:
        guard = PrecisionGuard(loop)
        for window in guard.windows(BATCHES):
            for attempt in guard.attempts():
                with attempt:
                    passes(window[0])
                    optimizer.step()
                    optimizer.zero_grad()
    else:
        for rows in BATCHES:
            passes(rows)
            loop.scaler.step(optimizer)
            loop.scaler.update()
            optimizer.zero_grad()
    assert all(map(torch.equal, model.parameters(), by_hand(each_part)))


def test_values_of_gradients_without_a_scale() -> None:
    """`loss.backward()` scales nothing, so `accelerator.clip_grad_value_` finds no scale: the step is made in float32."""
    accelerator, model, optimizer, guard = accelerated()
    for attempt in guard.attempts():
        with attempt:
            model(BATCHES[0]).float().square().mean().backward()
            accelerator.clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
    assert (guard.dtype, guard.windows_done) == (FLOAT32, 1)


def test_clipped_between_the_steps_of_two_optimizers() -> None:
    """The second optimizer's gradients lose no scale once more, though the first has stepped through the scaler."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(mixed_precision="fp16", cpu=True)
    model, plain = layers(), layers()
    optimizers: list[Any] = [torch.optim.SGD(model[place].parameters(), 0.5) for place in (0, 2)]
    model, *optimizers = accelerator.prepare(model, *optimizers)
    guard = PrecisionGuard(accelerator, model, init_scale=SCALE)
    for window in guard.windows(BATCHES):
        for attempt in guard.attempts():
            with attempt:
                accelerator.backward(model(window[0]).float().square().mean())
                for place, optimizer in zip((0, 2), optimizers, strict=True):
                    accelerator.clip_grad_norm_(model[place].parameters(), 0.05)
                    optimizer.step()
                for optimizer in optimizers:
                    optimizer.zero_grad()

    steps = [torch.optim.SGD(plain[place].parameters(), 0.5) for place in (0, 2)]
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for rows in BATCHES:
        with torch.autocast("cpu", torch.float16):
            loss = plain(rows).float().square().mean()
        scaler.scale(loss).backward()
        for place, step in zip((0, 2), steps, strict=True):
            scaler.unscale_(step)
            clip_grad_norm_(plain[place].parameters(), 0.05)
            scaler.step(step)
        scaler.update()
        plain.zero_grad()
    assert all(map(torch.equal, model.parameters(), plain.parameters()))
