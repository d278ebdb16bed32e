"""A remedy that a user writes in one file: tried at its place, it cures, is undone where it does not, and goes again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from safe_dtype import (
    BFLOAT16,
    FailureKind,
    Incident,
    NoDtypeLeft,
    NotPossible,
    guard,
    register_remedy,
    report,
)
from safe_dtype.errors import StrictModeError
from safe_dtype.testing import fault

BF16 = torch.bfloat16


# What the user writes.


@dataclass(frozen=True)
class ComputeWider:
    """Compute a module that has no weights in float32: its inputs and its output are cast."""

    module: nn.Module
    hooks: list[Any] = field(default_factory=list, compare=False)
    changes_dtype = False

    def __str__(self) -> str:
        return "the operation in float32"

    def apply(self, incident: Incident) -> int:
        """Put two hooks on the module."""
        dtypes: list[torch.dtype] = []

        def widen(_module: nn.Module, args: Any) -> Any:
            dtypes[:] = [args[0].dtype]
            return (args[0].float(),)

        def narrow(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            return output.to(dtypes[0])

        self.hooks.append(self.module.register_forward_pre_hook(widen))
        self.hooks.append(self.module.register_forward_hook(narrow))
        return 0

    def undo(self, incident: Incident) -> None:
        """Take the hooks off."""
        while self.hooks:
            self.hooks.pop().remove()


def propose(incident: Incident) -> Iterator[ComputeWider]:
    """Propose it where a module misses a kernel."""
    if incident.failure.kind is FailureKind.OP_UNSUPPORTED and incident.blamed is not None:
        yield ComputeWider(incident.blamed)


class Fourier(nn.Module):
    """An FFT, which torch has no bfloat16 kernel for."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image of any shape to the real part of its spectrum."""
        return torch.fft.fft(image).real


class Spectral(nn.Module):
    """A network with an FFT between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fourier, self.last = nn.Linear(8, 8), Fourier(), nn.Linear(8, 8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, 8) to features (B, 8)."""
        return self.last(self.fourier(self.first(image)))


def network() -> Spectral:
    """Return a seeded one in bfloat16."""
    torch.manual_seed(0)
    return Spectral().eval().to(BF16)


def hooks_on(model: nn.Module) -> int:
    """Return how many hooks there are on the modules of `model`."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@torch.no_grad()
def test_it_cures() -> None:
    """The model stays in bfloat16, only the operation that has no kernel is computed in float32."""
    model, image = guard(network()), torch.randn(2, 8, dtype=BF16)
    plain = copy.deepcopy(network())
    expected = plain.last(torch.fft.fft(plain.first(image).float()).real.to(BF16))
    with register_remedy(propose):
        assert torch.equal(model(image), expected)
        assert torch.equal(model(image), expected)
    (event,) = report(model).events
    assert (event.remedy, event.module, event.after) == ("the operation in float32", "fourier", BFLOAT16)


@torch.no_grad()
def test_it_is_undone() -> None:
    """Where the same module fails again the remedy is undone, and the next one is tried."""
    model, image = guard(network()), torch.randn(2, 8, dtype=BF16)
    with register_remedy(propose), fault(model, "last", "not_implemented"):
        model(image)
    events = [(event.remedy, event.module) for event in report(model).events]
    assert events[0] == ("the operation in float32", "fourier")
    assert events[1:] == [("the operation in float32", "last"), ("float32", "last")]
    assert hooks_on(model) == hooks_on(model.fourier) == 2  # where it was of use


@torch.no_grad()
def test_it_is_unregistered() -> None:
    """Removed, or after the block, it is tried no more, and the ladder is what is left; removing again is nothing."""
    registration = register_remedy(propose)
    registration.remove()
    registration.remove()
    with register_remedy(propose):
        pass
    model = guard(network())
    model(torch.randn(2, 8, dtype=BF16))
    assert [event.remedy for event in report(model).events] == ["float32"]


@dataclass(frozen=True)
class Named:
    """A remedy that is never possible."""

    name: str
    changes_dtype = False

    def __str__(self) -> str:
        return self.name

    def apply(self, incident: Incident) -> int:
        """Refuse."""
        raise NotPossible("not today")

    def undo(self, incident: Incident) -> None:
        """Nothing to undo."""


@torch.no_grad()
def test_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried before the remedy it names, in the order of registration, and its reason is in the error."""
    model, image = guard(network(), policy="auto,islands"), torch.randn(2, 8, dtype=BF16)
    monkeypatch.setattr("safe_dtype.guarding.remedies.free_memory.shortage", lambda needed: "no room")
    with (
        register_remedy(lambda incident: [Named("last")]),
        register_remedy(lambda incident: [Named("first"), Named("second")], before="float32_island"),
        register_remedy(lambda incident: [Named("third")], before="float32_island"),
        fault(model, "first", "not_implemented"),
        pytest.raises(NoDtypeLeft) as caught,
    ):
        model(image)
    attempts = [attempt.remedy for attempt in caught.value.attempts]
    assert attempts == ["first", "second", "third", "the module in float32", "last", "float32"]
    assert str(caught.value.attempts[0]) == "first: not today"


def test_an_unknown_place() -> None:
    """A place that does not exist is an error that names those that do."""
    with pytest.raises(ValueError, match=r"'somewhere' is no remedy of safe_dtype\. Next: .*align_module"):
        register_remedy(propose, before="somewhere")  # type: ignore[arg-type]


@torch.no_grad()
def test_strict_mode() -> None:
    """In strict mode it is not tried, and not named among the dtypes that would work."""
    model = guard(network(), policy="strict")
    with register_remedy(propose), pytest.raises(StrictModeError, match=r"Would work: float32"):
        model(torch.randn(2, 8, dtype=BF16))
    assert hooks_on(model) == 0


def test_nothing_to_propose() -> None:
    """A proposal that has nothing for a failure may return None, and the remedies after it are tried."""
    model = guard(nn.Sequential(nn.Linear(4, 4)).to(BF16).eval())
    with register_remedy(lambda _incident: None), fault(model, "0", "not_implemented"):
        model(torch.ones(1, 4, dtype=BF16))
    assert [event.remedy for event in report(model).events] == ["float32"]


def raising(incident: Incident) -> Iterator[Named]:
    """Propose one remedy, and fail after it."""
    yield Named("first")
    raise RuntimeError("of its own")


@pytest.mark.parametrize(
    ("propose", "logged"),
    [
        pytest.param(lambda _: Named("alone"), "it returned a Named, and not remedies", id="one-remedy"),
        pytest.param(lambda _: 3, "it returned a int", id="no-iterable"),
        pytest.param(lambda _: "float32", "'f', which test_proposals_that_are_wrong", id="a-text"),
        pytest.param(lambda _: [None, Named("second")], "None, which", id="among-others"),
        pytest.param(raising, "what raising proposes is left out: RuntimeError: of its own", id="raises"),
        pytest.param(list, "TypeError", id="wrong-signature"),
    ],
)
@torch.no_grad()
def test_proposals_that_are_wrong(propose: Any, logged: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is no remedy is named in the log, and the remedies after it are tried."""
    if propose.__name__ == "<lambda>":
        propose.__qualname__ = "test_proposals_that_are_wrong"
    model = guard(nn.Sequential(nn.Linear(4, 4)).to(BF16).eval())
    with register_remedy(propose), fault(model, "0", "not_implemented"):
        model(torch.ones(1, 4, dtype=BF16))
    assert [event.remedy for event in report(model).events] == ["float32"]
    assert logged in caplog.text


class Plain:
    """A remedy without `__eq__`, proposed anew each time, that changes nothing."""

    changes_dtype = False

    def apply(self, incident: Incident) -> int:
        """Do nothing, and say that it was done."""
        return 0

    def undo(self, incident: Incident) -> None:
        """There is nothing to take back."""


def test_a_remedy_that_never_equals_itself() -> None:
    """It is not tried for ever: the step ends with every attempt that was made."""
    model = guard(nn.Linear(4, 4).to(BF16).eval())
    with (
        register_remedy(lambda incident: [Plain()]),
        fault(model, "", "not_implemented"),
        pytest.raises(NoDtypeLeft) as caught,
        torch.no_grad(),
    ):
        model(torch.ones(1, 4, dtype=BF16))
    assert 1 < len(caught.value.attempts) <= 50
