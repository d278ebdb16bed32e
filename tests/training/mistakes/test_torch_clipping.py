"""Loops that clip by functions of torch: in float16 the gradients have no scale there, or an error says what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

from safe_dtype.errors import TrainingLoopError
from safe_dtype.training import PrecisionGuard, TorchLoop

Clip = Callable[[Any], Any]
BATCHES = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
CLIPS: dict[str, Clip] = {
    "norm": lambda weights: clip_grad_norm_(weights, 0.1),
    "value": lambda weights: clip_grad_value_(weights, 0.01),
}


def layers() -> nn.Module:
    """Return a small model, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def train(model: Any, autocast: Callable[[], Any], backward: Callable[[Any], object], rows: Any) -> None:
    """Run one batch forward and backward."""
    with autocast():
        loss = model(rows).float().square().mean()
    backward(loss)


def train_by_hand(model: Any, scaler: Any, step: Callable[[], object]) -> None:
    """Train in float16 without a guard, by a step that makes all of it, gradients unscaled before they are clipped."""
    for rows in BATCHES:
        train(model, lambda: torch.autocast("cpu", torch.float16), lambda loss: scaler.scale(loss).backward(), rows)
        step()
        scaler.update()
        model.zero_grad()


def train_guarded(guard: PrecisionGuard, loop: Any, model: Any, step: Callable[[], object]) -> None:
    """Train the same under a guard."""
    for window in guard.windows(BATCHES):
        for attempt in guard.attempts():
            with attempt:
                for rows in window:
                    train(model, loop.autocast, loop.backward, rows)
                step()
                model.zero_grad()


def by_hand(clip: Clip, init_scale: float) -> list[torch.Tensor]:
    """Return the weights that are trained by hand."""
    model = layers()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.5), torch.amp.GradScaler("cpu", init_scale=init_scale)

    def step() -> None:
        scaler.unscale_(optimizer)
        clip(model.parameters())
        scaler.step(optimizer)

    train_by_hand(model, scaler, step)
    return [weight.detach() for weight in model.parameters()]


def prepared(
    model: Any, optimizer: Any, init_scale: float, *, uses_accelerate: bool, micro_batches: int = 1
) -> tuple[PrecisionGuard, Any, Any, Any, Callable[[], Any]]:
    """Return a guard in float16, its loop, the model and the optimizer to use, and what goes around a micro-batch."""
    if not uses_accelerate:
        loop: Any = TorchLoop(model, optimizer, "float16", init_scale=init_scale)
        return PrecisionGuard(loop), loop, model, optimizer, loop.accumulate
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    loop = Accelerator(mixed_precision="fp16", cpu=True, gradient_accumulation_steps=micro_batches)
    model, optimizer = loop.prepare(model, optimizer)
    guard = PrecisionGuard(loop, model, init_scale=init_scale)
    return guard, loop, model, optimizer, lambda: loop.accumulate(model)


def guarded(clip: Clip, init_scale: float, *, uses_accelerate: bool) -> tuple[list[torch.Tensor], PrecisionGuard]:
    """Return the weights that are trained under a guard, and the guard."""
    model = layers()
    weights, optimizer = list(model.parameters()), torch.optim.SGD(model.parameters(), 0.5)
    guard, loop, called, steps, _ = prepared(model, optimizer, init_scale, uses_accelerate=uses_accelerate)

    def step() -> None:
        clip(weights)
        steps.step()

    train_guarded(guard, loop, called, step)
    return [weight.detach() for weight in weights], guard


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
@pytest.mark.parametrize("name", CLIPS)
def test_gradients_are_clipped_without_their_scale(name: str, uses_accelerate: bool) -> None:
    """Wherever the function was imported: to the bit what a loop computes that unscales them itself."""
    expected = by_hand(CLIPS[name], 1024.0)
    weights, guard = guarded(CLIPS[name], 1024.0, uses_accelerate=uses_accelerate)
    assert guard.events == []
    assert all(map(torch.equal, weights, expected))


def test_an_overflow_is_not_clipped_away() -> None:
    """A gradient without an end that becomes a limit is no number of that batch: it runs again with half the scale."""
    expected = by_hand(CLIPS["value"], 2.0**10)
    weights, guard = guarded(CLIPS["value"], 2.0**24, uses_accelerate=False)
    assert guard.events
    assert all(event.remedy.startswith("loss scale ") for event in guard.events)
    assert all(map(torch.equal, weights, expected))


def strictly(weights: Any) -> None:
    """Clip, and raise an error of the program where the norm is not finite."""
    if not clip_grad_norm_(weights, 0.1).isfinite():
        raise RuntimeError("non-finite gradients")


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
@pytest.mark.parametrize(
    "clip",
    [strictly, lambda weights: clip_grad_norm_(weights, 0.1, error_if_nonfinite=True)],
    ids=["program", "torch"],
)
def test_an_overflow_that_is_raised_for(clip: Clip, uses_accelerate: bool) -> None:
    """By torch's `error_if_nonfinite`, or by the program: half the scale is tried first, and not float32."""
    weights, guard = guarded(clip, 2.0**24, uses_accelerate=uses_accelerate)
    assert {event.remedy.partition("scale ")[0] for event in guard.events} == {"loss "}
    assert all(map(torch.equal, weights, by_hand(CLIPS["norm"], guard.loop.scaler.get_scale())))


def test_norms_that_are_only_looked_at() -> None:
    """A norm for the log is that of gradients without a scale, and clipping after it takes no scale away once more."""
    norms: list[float] = []

    def clip(weights: Any) -> None:
        norms.append(float(get_total_norm([weight.grad for weight in weights])))
        clip_grad_norm_(weights, 0.1)

    weights, _ = guarded(clip, 1024.0, uses_accelerate=False)
    assert all(map(torch.equal, weights, by_hand(CLIPS["norm"], 1024.0)))
    assert max(norms) < 10


def test_both_ways_of_clipping() -> None:
    """By value and then by norm, as torch's functions may follow one another; so may the loop's own."""

    def both(weights: Any) -> None:
        weights = list(weights)
        clip_grad_value_(weights, 0.01)
        clip_grad_norm_(weights, 0.02)

    weights, _ = guarded(both, 1024.0, uses_accelerate=False)
    assert all(map(torch.equal, weights, by_hand(both, 1024.0)))


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
def test_gradients_that_are_not_whole(uses_accelerate: bool) -> None:
    """Clipped between two micro-batches, by what knows nothing of a scale: the next would be added to other numbers."""
    layer = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    guard, loop, called, _, accumulate = prepared(
        layer, optimizer, 256.0, uses_accelerate=uses_accelerate, micro_batches=2
    )
    window = next(guard.windows([torch.ones(2, 4)] * 2, 2))

    def attempted() -> None:
        with next(guard.attempts()):
            for rows in window:
                with accumulate():
                    loop.backward(called(rows).mean())
                    clip_grad_norm_(layer.parameters(), 0.1)

    with pytest.raises(TrainingLoopError, match=r"before they are whole.*Next: clip once a step"):
        attempted()


def test_a_norm_of_gradients_that_are_not_whole() -> None:
    """Looked at between two micro-batches, for a log: nothing is changed, and it is that of the gradients as they are."""
    layer = nn.Linear(4, 1)
    loop = TorchLoop(layer, torch.optim.SGD(layer.parameters()), "float16", init_scale=256.0)
    guard, norms = PrecisionGuard(loop), []
    for window in guard.windows([torch.ones(2, 4)] * 2, 2):
        for attempt in guard.attempts():
            with attempt:
                for rows in window:
                    loop.backward(layer(rows).mean())
                    norms.append(float(get_total_norm([weight.grad for weight in layer.parameters()])))
                loop.optimizers[0].step()
    assert norms == [pytest.approx(256 * 5**0.5), pytest.approx(2 * 5**0.5)]


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_backward_pass_after_clipping(is_frozen: bool) -> None:
    """In a window that the guard does not hand out: refused where it adds to what was clipped, as torch refuses it."""
    layer, head = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (layer, head)]
    loop = TorchLoop([layer, head], optimizers, "float16", init_scale=256.0)
    guard = PrecisionGuard(loop)
    attempts = guard.attempts()

    def step() -> None:
        with next(attempts):
            loop.backward(head(layer(torch.ones(2, 4))).mean())
            clip_grad_norm_(head.parameters(), 0.1)
            head.requires_grad_(not is_frozen)
            loop.backward(head(layer(torch.ones(2, 4))).mean())
            for optimizer in optimizers:
                optimizer.step()

    if is_frozen:
        step()
        assert guard.windows_done == 0  # counted where the next attempt is asked for
        assert next(attempts, None) is None
        assert guard.windows_done == 1
    else:
        with pytest.raises(TrainingLoopError, match=r"added gradients with a loss scale.*Next: clip once a step"):
            step()


class ClippingSGD(torch.optim.SGD):
    """An optimizer that clips as a part of its step."""

    def step(self, closure: Any = None) -> Any:
        """Clip, and step."""
        for group in self.param_groups:
            clip_grad_norm_(group["params"], 0.1)
        return super().step(closure)


def stepped_one_by_one(optimizers: list[Any]) -> list[torch.Tensor]:
    """Return two norms of each optimizer: before it steps, after others have, and after its own step."""
    norms = []
    for optimizer in optimizers:
        weights = optimizer.param_groups[0]["params"]
        norms.append(clip_grad_norm_(weights, 0.1))
        optimizer.step()
        norms.append(get_total_norm([weight.grad for weight in weights]))
    return norms


@pytest.mark.parametrize("kind", [torch.optim.SGD, ClippingSGD])
def test_clipping_after_the_first_step_of_a_window(kind: Any) -> None:
    """An optimizer after the other, a step that clips, a norm for the log: no scale is taken away twice."""
    model, norms = layers(), []
    optimizers = [kind(layer.parameters(), 0.5) for layer in (model[0], model[2])]
    loop = TorchLoop(model, optimizers, "float16", init_scale=1024.0)
    train_guarded(PrecisionGuard(loop), loop, model, lambda: norms.extend(stepped_one_by_one(optimizers)))

    plain, plain_norms = layers(), []
    plain_optimizers = [kind(layer.parameters(), 0.5) for layer in (plain[0], plain[2])]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step() -> None:
        for optimizer in plain_optimizers:
            scaler.unscale_(optimizer)
        plain_norms.extend(stepped_one_by_one(plain_optimizers))

    train_by_hand(plain, scaler, step)
    assert norms == plain_norms
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


@pytest.mark.parametrize("view", [torch.Tensor.detach, lambda gradient: gradient.data], ids=["detach", "data"])
def test_a_norm_of_views_of_gradients(view: Clip) -> None:
    """`get_total_norm` of `grad.detach()` or `grad.data` has no scale either."""
    norms: list[torch.Tensor] = []

    def clip(weights: Any) -> None:
        norms.append(get_total_norm([view(weight.grad) for weight in weights]))

    by_hand(clip, 1024.0)
    guarded(clip, 1024.0, uses_accelerate=False)
    assert norms[: len(BATCHES)] == norms[len(BATCHES) :]
