"""Two models of one step, each clipped after its own backward pass: in float16 each loses its loss scale once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn.utils import clip_grad_norm_

from safe_dtype.errors import TrainingLoopError
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.training import PrecisionGuard, TorchLoop

BATCHES = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
SCALE = 1024.0
LIMIT = 100.0  # above the norms of gradients without their scale, and below those with it
Backward, Clip = Callable[[torch.Tensor], None], Callable[..., Any]


def pair() -> tuple[list[Any], list[Any]]:
    """Return two small models, always the same, and their optimizers."""
    torch.manual_seed(0)
    models = [nn.Linear(8, 8), nn.Linear(8, 1)]
    return models, [torch.optim.SGD(model.parameters(), 0.05) for model in models]


def loss_of(outputs: torch.Tensor) -> torch.Tensor:
    """Return a loss."""
    return outputs.float().square().mean()


def one_after_the_other(models: Sequence[Any], _: Any, rows: torch.Tensor, backward: Backward, clip: Clip) -> None:
    """Clip the first model before the second one has gradients."""
    for model in models:
        backward(loss_of(model(rows)))
        clip(model.parameters(), LIMIT)


def gradients_that_are_dropped(
    models: Sequence[Any], optimizers: Sequence[Any], rows: torch.Tensor, backward: Backward, clip: Clip
) -> None:
    """Train the first model through the second, as a generator is, which gives that one gradients of no use."""
    backward(loss_of(models[1](models[0](rows))))
    clip(models[0].parameters(), LIMIT)
    optimizers[1].zero_grad()
    backward(loss_of(models[1](rows)))
    clip(models[1].parameters(), LIMIT)


def gradients_that_are_zeroed(
    models: Sequence[Any], optimizers: Sequence[Any], rows: torch.Tensor, backward: Backward, clip: Clip
) -> None:
    """The same, and zeros are left in their places."""
    backward(loss_of(models[1](models[0](rows))))
    clip([*models[0].parameters(), *models[1].parameters()], LIMIT)
    optimizers[1].zero_grad(set_to_none=False)
    backward(loss_of(models[1](rows)))
    clip(models[1].parameters(), LIMIT)


def gradients_that_are_shared(
    models: Sequence[Any], _: Any, rows: torch.Tensor, backward: Backward, clip: Clip
) -> None:
    """Clip the first model between two passes that both train the second."""
    backward(loss_of(models[1](models[0](rows))))
    clip(models[0].parameters(), LIMIT)
    backward(loss_of(models[1](rows)))
    clip(models[1].parameters(), LIMIT)


def by_hand(passes: Callable[..., None]) -> list[torch.Tensor]:
    """Train in float16 with a loss scale that is taken from the gradients of each backward pass."""
    models, optimizers = pair()
    weights = [weight for model in models for weight in model.parameters()]

    def backward(loss: torch.Tensor) -> None:
        for weight, gradient in zip(
            weights, torch.autograd.grad(loss * SCALE, weights, allow_unused=True), strict=True
        ):
            if gradient is not None:
                weight.grad = gradient / SCALE if weight.grad is None else weight.grad + gradient / SCALE

    for rows in BATCHES:
        with torch.autocast("cpu", torch.float16):
            passes(models, optimizers, rows, backward, clip_grad_norm_)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [weight.detach() for weight in weights]


def guarded(passes: Callable[..., None], *, uses_accelerate: bool) -> list[torch.Tensor]:
    """Train the same under a guard."""
    models, optimizers = pair()
    weights = [weight for model in models for weight in model.parameters()]
    if uses_accelerate:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        loop: Any = Accelerator(mixed_precision="fp16", cpu=True)
        models, optimizers = [list(kind) for kind in (loop.prepare(*models), loop.prepare(*optimizers))]
        guard = PrecisionGuard(loop, *models, init_scale=SCALE)
    else:
        loop = TorchLoop(models, optimizers, "float16", init_scale=SCALE)
        guard = PrecisionGuard(loop)
    for window in guard.windows(BATCHES):
        for attempt in guard.attempts():
            with attempt:
                with loop.autocast():
                    passes(models, optimizers, window[0], loop.backward, loop.clip_grad_norm_)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    assert guard.events == []
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
@pytest.mark.parametrize(
    "passes",
    [one_after_the_other, gradients_that_are_dropped, gradients_that_are_zeroed, gradients_that_are_shared],
)
def test_each_model_after_its_own_pass(passes: Callable[..., None], uses_accelerate: bool) -> None:
    """To the bit what each backward pass gives without a scale."""
    assert all(map(torch.equal, guarded(passes, uses_accelerate=uses_accelerate), by_hand(passes)))


def test_new_gradients_beside_clipped_ones_of_one_optimizer() -> None:
    """No scaler can take the scale from a part of an optimizer's gradients: an error says to clip later."""
    models, _ = pair()
    optimizer = torch.optim.SGD([weight for model in models for weight in model.parameters()], 0.05)
    loop = TorchLoop(models, optimizer, "float16", init_scale=SCALE)
    with pytest.raises(TrainingLoopError, match="Next: clip once a step"), next(PrecisionGuard(loop).attempts()):
        one_after_the_other(models, None, BATCHES[0], loop.backward, loop.clip_grad_norm_)


class Diverged(Exception):  # noqa: N818  (as a program names its own)
    """Of the program, in its own words."""


@pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])
@pytest.mark.parametrize("error", [Diverged("step 3"), AssertionError(), ValueError("grad norm is nan")], ids=repr)
def test_any_error_of_the_program_for_an_overflow(error: Exception, uses_accelerate: bool) -> None:
    """Half the loss scale is tried first, whatever its class and text, for two optimizers as for one."""
    models, optimizers = pair()
    if uses_accelerate:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        loop: Any = Accelerator(mixed_precision="fp16", cpu=True)
        models, optimizers = [list(kind) for kind in (loop.prepare(*models), loop.prepare(*optimizers))]
        guard = PrecisionGuard(loop, *models, init_scale=2.0**24)
    else:
        loop = TorchLoop(models, optimizers, "float16", init_scale=2.0**24)
        guard = PrecisionGuard(loop)
    for attempt in guard.attempts():
        with attempt:
            with loop.autocast():
                loss = loss_of(models[1](models[0](BATCHES[0])))
            loop.backward(loss)
            for model in models:
                if not loop.clip_grad_norm_(model.parameters(), 1.0).isfinite():
                    raise error
            for optimizer in optimizers:
                optimizer.step()
    assert {event.remedy.partition("scale ")[0] for event in guard.events} == {"loss "}


def test_an_error_of_the_program_for_gradients_in_bfloat16() -> None:
    """A step further down the gradients are finite, and the program raises no more."""
    model = nn.Linear(8, 1)
    loop = TorchLoop(model, torch.optim.SGD(model.parameters(), 0.1), "bfloat16")
    guard = PrecisionGuard(loop, ladder=(BFLOAT16, FLOAT32))
    model.weight.register_hook(lambda gradient: gradient / (guard.dtype == FLOAT32))
    for attempt in guard.attempts():
        with attempt:
            with loop.autocast():
                loss = loss_of(model(BATCHES[0]))
            loop.backward(loss)
            if not clip_grad_norm_(model.parameters(), 1.0).isfinite():
                raise Diverged
            loop.optimizers[0].step()
    assert [event.remedy for event in guard.events] == ["in float32"]


@pytest.mark.parametrize("first", ["float16", "bfloat16"])
def test_an_error_that_no_precision_cures(first: str) -> None:
    """What the program raises in the last dtype as well, for its own reasons, comes out as itself."""
    model, error = nn.Linear(8, 1), KeyError("labels")
    loop = TorchLoop(model, torch.optim.SGD(model.parameters(), 0.1), first, init_scale=4.0)
    guard = PrecisionGuard(loop)
    model.weight.register_hook(lambda gradient: gradient * float("inf"))
    before, caught = model.weight.detach().clone(), None
    try:
        for attempt in guard.attempts():
            with attempt:
                with loop.autocast():
                    loss = loss_of(model(BATCHES[0]))
                loop.backward(loss)
                raise error
    except KeyError as exc:
        caught = exc
    assert caught is error
    assert guard.dtype == FLOAT32
    assert torch.equal(model.weight, before)
