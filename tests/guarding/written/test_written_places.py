"""A step that is repeated does not see what its first try wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from guarding.generators import DOWN, ONE_ROW, generator, with_unknown_cache
from torch import nn
from transformers import CTRLConfig, CTRLModel

from safe_dtype import FLOAT32, guard, report
from safe_dtype.errors import CannotResumeError
from safe_dtype.guarding.state import guard_of
from safe_dtype.guarding.step_snapshot import undone
from safe_dtype.guarding.written.written_places import ROOM
from safe_dtype.testing import fault

BF16, FP32 = torch.bfloat16, torch.float32
KINDS = ("cublas", "nan")
MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


class Stats:
    """An object that a module counts in."""

    calls = 0


class Memory(nn.Module):
    """Writes into all that a module can write into, before it multiplies and after that."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.register_buffer("total", torch.zeros(8))
        self.register_buffer("replaced", torch.zeros(1))
        self.calls, self.log, self.names, self.stats = 0, [], {"calls": 0}, Stats()
        self.state: Any = None
        self.plain = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        self.count()
        y = self.b(self.a(x))
        self.count()
        return y

    def count(self) -> None:
        """Count."""
        self.total += 1
        self.replaced = self.replaced + 1
        self.plain += 1
        self.calls += 1
        self.log.append(self.calls)
        self.names["calls"] += 1
        self.stats.calls += 1
        if self.state is None:
            self.state = torch.zeros(1)
        self.state += 1
        self.late = getattr(self, "late", 0) + 1

    def counts(self) -> list[float]:
        """Return what each place has counted."""
        tensors = (self.total[0], self.replaced[0], self.plain[0], self.state[0])
        others = (self.calls, len(self.log), self.names["calls"], self.stats.calls, self.late)
        return [*map(float, tensors), *map(float, others)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("module", ["a", "b"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", range(4))
def test_everything_is_counted_once(
    call: int, kind: str, module: str, mode: Callable[[], AbstractContextManager[object]]
) -> None:
    """Whichever call fails, every place counts each call once."""
    with mode():
        model = guard(Memory().to(BF16).eval())
        x = torch.ones(1, 8, dtype=BF16)
        with fault(model, module, kind, call=call) as put:
            for _ in range(5):
                model(x)
    assert put.fired
    assert report(model).dtype is FLOAT32
    assert model.counts() == [10.0] * 9


class AddsOne(nn.Module):
    """Writes into its input before it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Any = None, beside: Any = None) -> torch.Tensor:
        """Multiply."""
        x += 1
        for one in (beside or {}).values():
            one += 1
        return self.a(x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [0, 2])
@pytest.mark.parametrize("by_name", [False, True])
def test_inputs(call: int, kind: str, mode: Callable[[], AbstractContextManager[object]], *, by_name: bool) -> None:
    """An input that the module writes into holds, after each call, what plain torch leaves in it; so do results."""
    with mode():
        model = AddsOne().to(BF16).eval()
        wanted = copy.deepcopy(model).to(FP32)
        guard(model)
        with fault(model, "a", kind, call=call) as put:
            for _ in range(4):
                x, beside = torch.ones(1, 8, dtype=BF16), {"one": torch.ones(2), "two": torch.zeros(1).to(BF16)}
                y = model(x=x, beside=beside) if by_name else model(x, beside)
                assert x.tolist() == [[2.0] * 8]
                assert [beside["one"].tolist(), beside["two"].tolist()] == [[2, 2], [1]]
        assert put.fired
        assert torch.equal(y, wanted(torch.ones(1, 8)))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_ctrl(kind: str) -> None:
    """CTRL multiplies its `inputs_embeds` in place: repeated, it gives what float32 gives."""
    torch.manual_seed(0)
    model = CTRLModel(CTRLConfig(vocab_size=32, n_positions=16, n_embd=16, dff=32, n_layer=2, n_head=2)).eval()
    embeds = torch.randn(1, 4, 16).to(BF16)
    model.to(BF16)
    wanted = copy.deepcopy(model).float()(inputs_embeds=embeds.float()).last_hidden_state
    guard(model)
    with fault(model, "h.1.ffn.0", kind):
        found = model(inputs_embeds=embeds.clone()).last_hidden_state
    assert report(model).dtype is FLOAT32
    assert torch.allclose(found, wanted, atol=1e-4)


class Large(nn.Module):
    """Writes into a buffer of which nobody keeps a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pool", torch.zeros(ROOM // 4 + 1))
        self.a = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        self.pool[0] += 1
        return self.a(x)


@pytest.mark.parametrize("call", [0, 2])
@torch.no_grad()
def test_no_copy(call: int) -> None:
    """What was written into a large buffer is said, and the model is usable afterwards."""
    model = guard(Large().eval())
    model.a.to(BF16)
    x = torch.ones(1, 8, dtype=BF16)
    with fault(model, "a", "cublas", call=call):
        for _ in range(call):
            model(x)
        with pytest.raises(CannotResumeError, match=r"Large\.pool"):
            model(x)
    assert model(x).dtype is FP32


class Learns(nn.Module):
    """Writes into a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        self.scale += 1
        return self.a(x) * self.scale


@pytest.mark.parametrize("call", [0, 2])
@torch.no_grad()
def test_weights(call: int) -> None:
    """A step that writes into a weight is not repeated."""
    model = guard(Learns().to(BF16).eval())
    x = torch.ones(1, 8, dtype=BF16)
    with fault(model, "a", "cublas", call=call):
        for _ in range(call):
            model(x)
        with pytest.raises(CannotResumeError, match="scale"):
            model(x)


class Prepares(nn.Module):
    """Halves a weight before its first call, as RWKV does."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.is_halved = False
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        self.calls += 1
        if not self.is_halved:
            self.a.weight.div_(2)
            self.is_halved = True
        return self.a(x)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_preparation(kind: str) -> None:
    """What prepares its weights once prepares them once, and the rest comes back."""
    model = Prepares().to(BF16).eval()
    wanted = copy.deepcopy(model).float()
    guard(model)
    x = torch.ones(1, 8, dtype=BF16)
    with fault(model, "a", kind):
        assert torch.equal(model(x), wanted(x.float()))
    assert model.calls == 1


@torch.no_grad()
def test_nothing_is_looked_at_later() -> None:
    """A model that writes into nothing is looked at in its first call alone; one that does, until nothing is new."""
    model = guard(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval())
    model(torch.ones(2, 8))
    (written,) = guard_of(model).written.values()
    assert written.is_settled
    assert not written.places
    memory = guard(Memory().eval())
    for settled in (False, False, True):
        memory(torch.ones(1, 8))
        (written,) = guard_of(memory).written.values()
        assert written.is_settled == settled
    assert {place.name for place in written.places} == {
        "total", "replaced", "plain", "calls", "log", "names", "stats", "state", "late",
    }  # fmt: skip


@torch.no_grad()
def test_a_copy_of_a_model() -> None:
    """A deep copy of a guarded model brings back its own state, not that of the original."""
    model = guard(Memory().to(BF16).eval())
    x = torch.ones(1, 8, dtype=BF16)
    for _ in range(3):
        model(x)
    copied = copy.deepcopy(model)
    before = model.counts()
    with fault(copied, "b", "cublas"):
        copied(x)
    assert model.counts() == before
    assert copied.counts() == [one + 2 for one in before]


@pytest.mark.parametrize("before", [0, 3])
@torch.no_grad()
def test_a_generation_that_begins_anew(before: int) -> None:
    """What a module counted in the first try of a generation is not there in the second."""

    def count(module: Any, _args: Any) -> None:
        module.calls += 1

    model = with_unknown_cache(guard(generator()))
    counted = model.get_submodule(DOWN)
    counted.calls = 0
    counted.register_forward_pre_hook(count)
    if before:
        model.generate(**ONE_ROW, max_new_tokens=before, do_sample=False)
    with fault(model, DOWN, "cublas", call=2):
        model.generate(**ONE_ROW, max_new_tokens=5, do_sample=False)
    assert [event.restarted for event in report(model).events] == [True]
    assert counted.calls == before + 5


@torch.no_grad()
def test_trials_leave_no_trace() -> None:
    """What is run inside of `undone` is not there afterwards."""
    model = Memory().eval()
    x = torch.ones(1, 8)
    model(x)
    before = model.counts()
    drawn = torch.random.get_rng_state()
    with undone(model, (x,)):
        model(x)
        x += 1
        torch.rand(1)
        assert model.counts() != before
    assert model.counts() == before
    assert x.tolist() == [[1.0] * 8]
    assert torch.equal(torch.random.get_rng_state(), drawn)
