"""An error whose text nobody knows: whether it is one of dtypes is found out by running what failed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.training import PrecisionGuard, TorchLoop
from safe_dtype.training.error_trial import passes_further_down


class Picky(nn.Module):
    """Fails with a text of its own in some dtypes, and counts in a buffer."""

    def __init__(self, dtypes: tuple[torch.dtype, ...], error: type[Exception] = ValueError, text: str = "no") -> None:
        super().__init__()
        self.dtypes, self.error, self.text = dtypes, error, text
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        self.calls += 1
        if inputs.dtype in self.dtypes:
            raise self.error(self.text)
        return inputs


class Once(nn.Module):
    """Fails at its first call alone."""

    def __init__(self) -> None:
        super().__init__()
        self.has_failed: list[int] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        self.has_failed.append(1)
        if len(self.has_failed) == 1:
            raise ValueError("no")
        return inputs


def raised_by(layer: nn.Module) -> tuple[nn.Module, Exception]:
    """Return a model with this layer, and what it raises in bfloat16."""
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 1))
    with pytest.raises(Exception) as raised, torch.autocast("cpu", torch.bfloat16):  # noqa: PT011  (whatever it is)
        model(torch.ones(2, 4))
    return model, raised.value


BOTH = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("layer", "passes"),
    [
        pytest.param(Picky(BOTH[:1]), FLOAT16, id="not-bfloat16"),
        pytest.param(Picky(BOTH), FLOAT32, id="no-16-bits"),
        pytest.param(Picky((*BOTH, torch.float32)), None, id="in-none"),
        pytest.param(Picky(BOTH, MemoryError), None, id="memory"),
        pytest.param(Picky(BOTH, RuntimeError, "CUDA out of memory."), None, id="memory-of-a-device"),
        pytest.param(Picky(BOTH, RuntimeError, "Connection closed by peer"), None, id="communication"),
        pytest.param(Once(), None, id="not-again"),
    ],
)
def test_found_out_alone(layer: nn.Module, passes: Any) -> None:
    """What fails alone as it is and passes in another dtype is one of dtypes; nothing is changed by the trial."""
    model, error = raised_by(layer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert passes_further_down([model], error, BFLOAT16, (FLOAT16, FLOAT32)) == passes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_the_loop_is_not_tried() -> None:
    """It was raised in no module."""
    with pytest.raises(ValueError, match="loop") as raised:
        raise ValueError("loop")
    assert passes_further_down([Picky(BOTH)], raised.value, BFLOAT16, (FLOAT16, FLOAT32)) is None


def test_a_run_goes_on() -> None:
    """The window runs again in the next dtype, and the event says how that was found out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Picky(BOTH[:1]), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loop = TorchLoop(model, optimizer, init_scale=1.0)
    guard = PrecisionGuard(loop)
    for window in guard.windows([torch.ones(2, 4)] * 2):
        for attempt in guard.attempts():
            with attempt:
                for inputs in window:
                    with loop.autocast():
                        loss = model(inputs).float().mean()
                    loop.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    (event,) = guard.events
    assert (guard.windows_done, guard.dtype) == (2, FLOAT16)
    assert event.message == "ValueError: no (by itself the module passes in float16)"
