"""Loops that are written otherwise than the guard asks: they train all the same, or the error says what to write."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from safe_dtype.errors import SafeDtypeWarning, TrainingLoopError
from safe_dtype.training import PrecisionGuard, TorchLoop
from safe_dtype.training.window import windows_of


@pytest.fixture
def layer() -> nn.Linear:
    """Four weights, without a bias."""
    torch.manual_seed(0)
    return nn.Linear(4, 1, bias=False)


def accelerator_for(mixed_precision: str) -> Accelerator:
    """Of windows of two, as if it were the first of the process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, cpu=True, gradient_accumulation_steps=2)


def clipped_with_every_micro_batch(layer: nn.Linear, mixed_precision: str) -> torch.Tensor:
    """Return what the weight gets in two steps, with norms that a limit of 0.5 cuts."""
    accelerator = accelerator_for(mixed_precision)
    layer, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.25))
    guard = PrecisionGuard(accelerator, layer, init_scale=256.0)
    before, norms = layer.weight.detach().clone(), []
    for window in guard.windows(torch.ones(4, 2, 4).cumsum(0), 2):
        for attempt in guard.attempts():
            with attempt:
                for rows in window:
                    with accelerator.accumulate(layer):
                        accelerator.backward(layer(rows).mean())
                        norms.append(float(accelerator.clip_grad_norm_(layer.parameters(), 0.5)))
                        optimizer.step()
                        optimizer.zero_grad()
    assert guard.events == []
    assert max(norms) < 20  # none with float16's scale
    return layer.weight.detach() - before


def test_gradients_are_clipped_with_every_micro_batch(layer: nn.Linear) -> None:
    """In float16 as in the other precisions, though torch takes the scale away once a step only."""
    weight = layer.weight.detach().clone()
    in_bfloat16 = clipped_with_every_micro_batch(layer, "bf16")
    with torch.no_grad():
        layer.weight.copy_(weight)
    torch.testing.assert_close(clipped_with_every_micro_batch(layer, "fp16"), in_bfloat16, rtol=1e-2, atol=1e-4)


def test_an_optimizer_that_was_not_prepared(layer: nn.Linear) -> None:
    """Its steps would be made before any vote, in float16 with scaled gradients."""
    accelerator = accelerator_for("bf16")
    guard = PrecisionGuard(accelerator, accelerator.prepare(layer))
    attempt = next(guard.attempts())
    with (
        pytest.raises(
            TrainingLoopError, match=r"Next: `model, optimizer = accelerator.prepare\(model, optimizer\)"
        ) as raised,
        attempt,
    ):
        pass
    error = pickle.loads(pickle.dumps(raised.value))
    assert (str(error), error.args) == (str(raised.value), raised.value.args)


@pytest.mark.parametrize("is_named", [False, True], ids=["by place", "by name"])
def test_a_closure(layer: nn.Linear, is_named: bool) -> None:
    """An optimizer that runs the model is refused before it has run it, in plain torch too."""
    optimizer = torch.optim.LBFGS(layer.parameters())
    guard = PrecisionGuard(TorchLoop(layer, optimizer, "bfloat16"))

    def closure() -> float:
        raise AssertionError

    attempt = next(guard.attempts())
    with pytest.raises(TrainingLoopError, match=r"closure.*Next: train with an optimizer whose"), attempt:
        optimizer.step(closure=closure) if is_named else optimizer.step(closure)


@pytest.mark.parametrize(
    ("max_memory", "text"),
    [
        ({"cpu": "100"}, "'100' is no size. Next: write bytes as a number"),
        ({"cpu": "1.2.3GiB"}, "'1.2.3GiB' is no size"),
        ({"cpu": "much"}, "'much' is no size"),
        ({"cpu": None}, "None is no size"),
        ({"cpu": True}, "True is no size"),
        ({"cpu": float("nan")}, "nan is no size"),
        ({"cpu": float("inf")}, "inf is no size"),
        ({"cpu": -1}, "-1 leaves no memory on 'cpu'. Next: write more than 0 bytes"),
        ({"cpu": 0}, "0 leaves no memory on 'cpu'"),
        ({"cpu": "0GiB"}, "'0GiB' leaves no memory"),
        ({"cup": "9GiB"}, r"no device 'cup' here. Next: .*'10GiB'}"),
        ({"cuda:99": "9GiB"}, "no device 'cuda:99' here"),
        ({99: "9GiB"}, "no device 99 here"),
        ({-1: "9GiB"}, "no device -1 here"),
        ({None: "9GiB"}, "no device None here"),
        ("9MB", r"names no device. Next: .*'10GiB'}"),
    ],
    ids=str,
)
def test_memory_that_cannot_be_read(layer: nn.Linear, max_memory: object, text: str) -> None:
    """A limit is read when it is said, and never left out: it is needed only where a run comes down to float32."""
    loop = TorchLoop(layer, torch.optim.SGD(layer.parameters()), "bfloat16")
    with pytest.raises(ValueError, match=text):
        PrecisionGuard(loop, max_memory=max_memory)


def test_a_window_of_nothing() -> None:
    """It would train nothing, without a word."""
    with pytest.raises(ValueError, match="at least one micro-batch, not 0"):
        list(windows_of([1, 2], 0, lambda _: None))


BATCHES = list(torch.ones(4, 2, 4).cumsum(0))


def train(
    loop: TorchLoop,
    guard: PrecisionGuard,
    end: Callable[[int], None],
    batches: list[torch.Tensor] = BATCHES,
    size: int = 1,
) -> None:
    """Run windows of `size`, each attempt with its number and what `end` makes of the gradients."""
    for number, window in enumerate(guard.windows(batches, size)):
        for attempt in guard.attempts():
            with attempt:
                for rows in window:
                    with loop.autocast():
                        loss = loop.models[0](rows).mean()
                    loop.backward(loss)
                end(number)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_step_outside_of_its_attempt(layer: nn.Linear, dtype: str) -> None:
    """It is refused before it is made, in float16 with the scale still in its gradients; what came before it was said."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    loop, weight = TorchLoop(layer, optimizer, dtype), layer.weight.detach().clone()
    guard = PrecisionGuard(loop)
    with pytest.warns(SafeDtypeWarning, match=r"no optimizer of its loop has stepped.*Next: put all micro-batches"):
        train(loop, guard, lambda _: None, BATCHES[:2], 2)
    with pytest.raises(TrainingLoopError, match=r"steps outside of the attempt.*Next: put all micro-batches"):
        optimizer.step()
    assert torch.equal(layer.weight, weight)
    assert guard.windows_done == 0


def test_an_optimizer_that_the_loop_does_not_know(layer: nn.Linear) -> None:
    """Its steps are made without a vote: said in the first window, and not again."""
    stranger = torch.optim.SGD(layer.parameters(), lr=0.25)
    loop = TorchLoop(layer, torch.optim.SGD(layer.parameters(), lr=0.25))
    guard = PrecisionGuard(loop)
    with pytest.warns(SafeDtypeWarning, match="no optimizer of its loop has stepped") as warnings:
        train(loop, guard, lambda _: stranger.step())
    assert (len(warnings), guard.windows_done) == (1, 0)


def test_a_window_without_a_step(layer: nn.Linear) -> None:
    """What a loop leaves out on purpose, and forgets, is no matter: what fails after it runs again."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    loop = TorchLoop(layer, optimizer)
    guard = PrecisionGuard(loop)

    def end(number: int) -> None:
        if number == 1 and guard.dtype.name == "bfloat16":
            raise RuntimeError("\"gate_cpu\" not implemented for 'BFloat16'")
        if number > 0:
            optimizer.step()
        optimizer.zero_grad()

    train(loop, guard, end)
    assert (guard.windows_done, guard.events[0].remedy) == (3, "in float16")


def test_gradients_that_are_left_are_taken_in_a_later_attempt(layer: nn.Linear) -> None:
    """A loop that steps in every second window is told once, and trains; then the program may step by itself as well."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    loop = TorchLoop(layer, optimizer)
    guard = PrecisionGuard(loop)

    def end(number: int) -> None:
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()

    with pytest.warns(SafeDtypeWarning, match="An attempt has left gradients") as warnings:
        train(loop, guard, end)
    optimizer.step()
    assert (len(warnings), guard.windows_done) == (1, 2)


def test_data_that_end_in_an_attempt(layer: nn.Linear) -> None:
    """What an attempt takes out of an iterator itself it could not take again: StopIteration alone would say nothing."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    loop = TorchLoop(layer, optimizer)
    guard, iterator = PrecisionGuard(loop), iter(BATCHES[:1])

    def step() -> None:
        for attempt in guard.attempts():
            with attempt:
                loop.backward(layer(next(iterator)).mean())
                optimizer.step()

    step()
    with pytest.raises(TrainingLoopError, match=r"`next\(\)` found nothing more.*Next: take them before") as raised:
        step()
    assert isinstance(raised.value.__cause__, StopIteration)
    assert guard.windows_done == 1
