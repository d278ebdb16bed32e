"""A guard watches, steps down, tells, and goes without a trace."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import DOWN, tiny
from guarding.nobody_guarded import nobody_guarded  # noqa: F401  (a fixture)
from tiny_models import TINY
from torch import nn
from transformers import PreTrainedModel

from safe_dtype import BFLOAT16, FLOAT32, guard, report, unguard
from safe_dtype.errors import NotGuardedError
from safe_dtype.guarding import FailureKind
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Spectral(nn.Module):
    """A plain network with an FFT, for which torch has no 16-bit kernel on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.mix = nn.Linear(8, 8)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Image (B, 3, H, 8) to features (B, 4, H, 8)."""
        features = self.mix(self.conv(image))
        return {"features": torch.fft.fft(features).real}


def test_plain_module() -> None:
    """Any module is guarded: a real missing kernel brings it to float32, with the result of float32."""
    torch.manual_seed(0)
    net = Spectral().eval().to(BF16)
    image = torch.randn(2, 3, 8, 8)
    wanted = copy.deepcopy(net).float()(image.to(BF16).float())["features"]
    assert guard(net) is net
    with torch.no_grad():
        found = net(image.to(BF16))["features"]
    assert torch.equal(found, wanted)
    (event,) = report(net).events
    assert (event.kind, event.before, event.after, event.step) == (FailureKind.OP_UNSUPPORTED, BFLOAT16, FLOAT32, 0)
    assert event.grown_bytes == 2 * sum(one.numel() for one in net.parameters())


@pytest.mark.parametrize("name", ["segformer", "bert"])
def test_encoders(name: str) -> None:
    """A model without a cache runs its one step again, and returns what it returns in float32."""
    model, given = tiny(name), TINY[name].inputs()
    last = [label for label, one in model.named_modules() if isinstance(one, nn.Linear)][-1]
    wanted = copy.deepcopy(model)
    recast(wanted, {BF16}, FP32)
    guard(model)
    given = {key: one.to(BF16) if one.is_floating_point() else one for key, one in given.items()}
    with torch.no_grad(), fault(model, last, "nan") as put:
        found = model(**given)
        truth = wanted(**{key: one.float() if one.is_floating_point() else one for key, one in given.items()})
    assert put.fired
    assert report(model).events[0].module == last
    for mine, theirs in zip(found.to_tuple(), truth.to_tuple(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.usefixtures("nobody_guarded")
def test_without_a_trace() -> None:
    """After `unguard` the classes and the model hold the very objects they held before."""

    class Own(nn.Linear):
        pass

    gc.collect()  # models of other tests may lie about in cycles, still guarded
    before = {owner: dict(vars(owner)) for owner in (PreTrainedModel, transformers.GenerationMixin, nn.Module, Own)}
    model, net = tiny(), Own(2, 2)
    attributes = set(vars(model))
    guard(model)
    guard(net)
    guard(model, policy="strict")  # again: the old one is replaced
    assert PreTrainedModel.__dict__.get("__call__") is not before[PreTrainedModel].get("__call__")
    unguard(model)
    unguard(net)
    unguard(net)
    for owner, names in before.items():
        now = vars(owner)
        assert all(now[name] is names[name] for name in names)
        assert not {"__call__", "generate", "generate_batch", "get_compiled_call"} & (now.keys() - names.keys())
    assert set(vars(model)) == attributes


def test_collected_without_a_trace() -> None:
    """A model that is garbage collected takes its guard with it, and so does a copy."""
    gc.collect()
    before = {owner: dict(vars(owner)) for owner in (PreTrainedModel, transformers.GenerationMixin)}
    model = guard(tiny())
    copied = copy.deepcopy(model)
    del model
    gc.collect()
    with fault(copied, DOWN, "nan"):
        copied.generate(IDS, max_new_tokens=2)
    assert len(report(copied).events) == 1, "the copy is guarded without the original"
    del copied
    gc.collect()
    assert {owner: dict(vars(owner)) for owner in before} == before


@pytest.mark.usefixtures("nobody_guarded")
def test_wrapped_by_another_library() -> None:
    """A wrapper that was put around ours stays and works; ours is out of its way, and comes back with the next guard."""
    model, calls = guard(tiny()), []
    ours = PreTrainedModel.__call__

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return ours(self, *args, **kwargs)

    PreTrainedModel.__call__ = theirs
    try:
        unguard(model)
        assert PreTrainedModel.__dict__["__call__"] is theirs
        with fault(model, DOWN, "cublas"), pytest.raises(RuntimeError, match="CUBLAS"):
            model(input_ids=IDS)
        guard(model)
        with fault(model, DOWN, "cublas"):
            model(input_ids=IDS)
        assert [event.kind for event in report(model).events] == [FailureKind.OP_UNSUPPORTED]
        unguard(model)
        assert PreTrainedModel.__dict__["__call__"] is theirs
        assert model in calls
    finally:
        PreTrainedModel.__call__ = ours  # as a library does that puts back what it found
    model(input_ids=IDS)
    assert "__call__" not in PreTrainedModel.__dict__


@pytest.mark.usefixtures("nobody_guarded")
def test_wrapped_by_another_library_for_a_while() -> None:
    """A library that takes its wrapper off puts back what it found: models guarded before and meanwhile stay guarded."""
    first = guard(tiny())
    found = PreTrainedModel.__call__
    PreTrainedModel.__call__ = lambda self, *args, **kwargs: found(self, *args, **kwargs)
    second = guard(tiny())
    PreTrainedModel.__call__ = found
    for model in (first, second):
        with fault(model, DOWN, "cublas"):
            model(input_ids=IDS)
        assert len(report(model).events) == 1
        unguard(model)
    assert "__call__" not in PreTrainedModel.__dict__


class NoMethod(nn.Linear):
    """A module with attributes of the names of methods."""

    @staticmethod
    def generate(value: int) -> int:
        """Return it."""
        return value

    @property
    def generate_batch(self) -> int:
        """A number."""
        return 5


def test_attributes_that_are_no_methods() -> None:
    """A static method and a property stay what they are."""
    model = guard(NoMethod(2, 2))
    assert (model.generate(3), NoMethod.generate(4), model.generate_batch) == (3, 4, 5)


@pytest.mark.parametrize("name", ["__call__", "generate", "forward"])
def test_signatures(name: str) -> None:
    """A guarded model shows the signatures and the documentation of transformers."""
    plain = tiny()
    signature, doc = inspect.signature(getattr(plain, name)), getattr(plain, name).__doc__
    model = guard(tiny())
    assert inspect.signature(getattr(model, name)) == signature
    assert getattr(model, name).__doc__ == doc


def test_guards_of_several_models() -> None:
    """Letting one model go leaves the guard of another in its place."""
    one, two = guard(tiny()), guard(tiny())
    unguard(one)
    with fault(two, DOWN, "nan"):
        two(input_ids=IDS)
    assert len(report(two).events) == 1
    with pytest.raises(NotGuardedError, match=r"safe_dtype\.guard"):
        report(one)
    unguard(two)


def test_report_reads() -> None:
    """The report says in a line what happened, where, and what it cost."""
    model = guard(tiny())
    with fault(model, DOWN, "cublas", call=2):
        model.generate(IDS, max_new_tokens=5)
    text = str(report(model))
    grown = sum(2 * one.numel() for one in model.parameters())
    assert text.startswith("Qwen3ForCausalLM in float32, 1 event\n")
    assert f"step 2: op_unsupported in {DOWN} (bfloat16) -> float32" in text
    assert f"{grown:+,} bytes]" in text


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """One record an event, readable as text and as fields."""
    model = guard(tiny())
    with fault(model, DOWN, "nan", call=1):
        model.generate(IDS, max_new_tokens=3)
    (record,) = [one for one in caplog.records if one.name.startswith("safe_dtype")]
    assert record.levelno == logging.WARNING
    assert "bfloat16 -> float32 (" in record.getMessage()
    assert (record.kind, record.step, record.before, record.after) == ("nonfinite", 1, "bfloat16", "float32")


def test_training_equals_plain() -> None:
    """Gradients and updates of a guarded model are those of a plain one, bit for bit."""

    def trained(model: Any) -> list[torch.Tensor]:
        optimizer = torch.optim.AdamW(model.train().parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
        return list(model.parameters())

    for mine, theirs in zip(trained(guard(tiny())), trained(tiny()), strict=True):
        assert torch.equal(mine, theirs)
