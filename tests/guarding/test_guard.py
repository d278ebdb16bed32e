"""A guard watches, steps down, tells, and goes without a trace."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import DOWN, tiny
from tiny_models import TINY
from torch import nn
from transformers import PreTrainedModel

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, NoDtypeLeft, SafeAutoModel, SafeDtypeWarning, guard, report, unguard
from safe_dtype.devices import facts_of
from safe_dtype.errors import CannotResumeError, DeviceLostError, NotGuardedError, StrictModeError
from safe_dtype.facts import VerdictKind
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
    assert "going on with float32" in record.getMessage()
    assert (record.kind, record.step, record.before, record.after) == ("nonfinite", 1, "bfloat16", "float32")


def test_warns_of_an_ordered_dtype(tmp_path: Path) -> None:
    """A dtype that was asked for and fails is warned of once, with both names."""
    model = SafeAutoModel.from_pretrained(
        TINY["qwen3"].save(tmp_path, BF16), dtype=BF16, policy="ladder=bf16>fp16>fp32"
    )
    with (
        fault(model, DOWN, "cublas"),
        fault(model, DOWN, "cublas", dtype=FLOAT16),
        pytest.warns(SafeDtypeWarning, match=r"bfloat16 was asked for.*Going on in float16") as warned,
    ):
        model.generate(IDS, max_new_tokens=2)
    assert len([one for one in warned if "asked for" in str(one.message)]) == 1
    assert [event.after for event in report(model).events] == [FLOAT16, FLOAT32]


def test_strict_changes_nothing() -> None:
    """In strict mode the failure is an error that names what would work; the model stays as it is."""
    model = guard(tiny(), policy="strict")
    with fault(model, DOWN, "cublas"), pytest.raises(StrictModeError, match="Would work: float32") as caught:
        model.generate(IDS, max_new_tokens=2)
    assert "CUBLAS" in str(caught.value.__cause__)
    with fault(model, DOWN, "nan"), pytest.raises(StrictModeError, match=f"nonfinite in {DOWN}"):
        model.generate(IDS, max_new_tokens=2)
    assert {one.dtype for one in model.parameters()} == {BF16}
    assert report(model).events == ()


def test_no_dtype_left() -> None:
    """Where float32 fails as well the error carries every attempt, its cause, and the model can be used."""
    model = guard(tiny())
    with (
        fault(model, DOWN, "cublas"),
        fault(model, DOWN, "cublas", dtype=FLOAT32),
        pytest.raises(NoDtypeLeft) as caught,
    ):
        model.generate(IDS, max_new_tokens=2)
    (attempt,) = caught.value.attempts
    assert attempt.remedy == "float32"
    assert "applied, and then: CUDA error" in attempt.outcome
    assert isinstance(caught.value.__cause__, RuntimeError)
    model.generate(IDS, max_new_tokens=2)


def test_float32_has_nothing_below() -> None:
    """A failure in float32 is no matter of dtypes: the exception comes through as it is, and so does a NaN."""
    model = guard(tiny(dtype=FP32))
    with fault(model, DOWN, "cublas", dtype=FLOAT32), pytest.raises(RuntimeError, match=r"^CUDA error: CUBLAS"):
        model.generate(IDS, max_new_tokens=2)
    with fault(model, DOWN, "nan", dtype=FLOAT32):
        assert model(input_ids=IDS).logits.isnan().any()
        assert model(input_ids=IDS).logits.isnan().any()
    (event,) = report(model).events
    assert (event.kind, event.after, event.module) == (FailureKind.NONFINITE, None, DOWN)


@pytest.mark.parametrize("kind", ["out_of_memory", "shape"])
def test_others_come_through(kind: str) -> None:
    """What another dtype does not cure is raised as it was, and nothing has changed."""
    model = guard(tiny())
    with fault(model, DOWN, kind) as put, pytest.raises(RuntimeError) as caught:
        model.generate(IDS, max_new_tokens=2)
    assert put.fired == 1
    assert caught.value.__cause__ is None
    assert report(model).events == ()
    assert model.dtype == BF16


def test_the_callers_own_nan() -> None:
    """A NaN that is given is given back: it is not the dtype's."""
    model = guard(tiny())
    embedded = torch.full((1, 3, 32), torch.nan, dtype=BF16)
    assert model(inputs_embeds=embedded).logits.isnan().all()
    assert report(model).events == ()


def test_padding_may_be_anything() -> None:
    """A NaN at a padded position of an encoder is nobody's business; at a real one it is."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2).to(BF16)

        def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.linear(hidden).masked_fill(attention_mask[..., None] == 0, torch.nan)

    net = guard(Net().eval())
    net(torch.ones(1, 3, 2, dtype=BF16), attention_mask=torch.tensor([[1, 1, 0]]))
    assert report(net).events == ()
    with pytest.raises(NoDtypeLeft), fault(net, "linear", "nan"), fault(net, "linear", "nan", dtype=FLOAT32):
        net(torch.ones(1, 3, 2, dtype=BF16), attention_mask=torch.tensor([[1, 1, 0]]))


@torch.no_grad()
def test_finite_and_wrong() -> None:
    """T5 clamps in float16 and returns finite nonsense, 44 % off: the pinned block is found, float32 is right."""
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    for block in model.encoder.block:
        block.layer[1].DenseReluDense.wi.weight.mul_(1000)
        block.layer[1].DenseReluDense.wo.weight.mul_(3000)
    given = {"input_ids": IDS, "decoder_input_ids": IDS}
    truth = model(**given).logits

    def error(other: Any) -> float:
        found = other(**given).logits.float()
        assert found.isfinite().all()
        return float((found - truth).norm() / truth.norm())

    assert error(copy.deepcopy(model).half()) > 0.1
    guarded = guard(model.half())
    assert error(guarded) < 0.01
    (event,) = report(guarded).events
    assert (event.kind, event.before, event.after) == (FailureKind.NONFINITE, FLOAT16, FLOAT32)
    assert event.module == "encoder.block.0"
    assert "pinned" in event.message


def test_a_loss_of_nothing_is_nan() -> None:
    """The mean over no labels is NaN, in any dtype; the logits are what counts."""
    model = guard(tiny())
    with torch.no_grad():
        assert model(input_ids=IDS, labels=torch.full_like(IDS, -100)).loss.isnan()
    assert report(model).events == ()


def test_training_is_left_alone() -> None:
    """In training mode a failure comes through, and a NaN too."""
    model = guard(tiny()).train()
    with fault(model, DOWN, "cublas"), pytest.raises(RuntimeError, match="CUBLAS"):
        model(input_ids=IDS)
    with fault(model, DOWN, "nan"):
        assert model(input_ids=IDS, labels=IDS).loss.isnan()
    assert report(model).events == ()


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


def test_deep_copies_are_guarded() -> None:
    """A copy has a guard of its own: what happens to one does not happen to the other."""
    model = guard(tiny())
    copied = copy.deepcopy(model)
    with fault(copied, DOWN, "nan"):
        copied.generate(IDS, max_new_tokens=2)
    assert (len(report(copied).events), len(report(model).events)) == (1, 0)
    assert (copied.dtype, model.dtype) == (FP32, BF16)
    part = copy.deepcopy(model.model)
    with pytest.raises(NotGuardedError):
        report(part)


def test_pickles_carry_nothing_of_ours() -> None:
    """A pickled model and one of `torch.save` name no module of safe_dtype, and load as plain models."""
    model = guard(tiny())
    file = io.BytesIO()
    torch.save(model, file)
    for raw in (pickle.dumps(model), file.getvalue()):
        assert b"safe_dtype." not in raw
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    with pytest.raises(NotGuardedError):
        report(again)
    assert not any("safe_dtype" in name for name in model.state_dict())


def test_sticky_failures_are_remembered(tmp_path: Path) -> None:
    """A lost device is a clear error, and the next plan for it rejects the dtype until it is measured anew."""
    folder = TINY["qwen3"].save(tmp_path, BF16)
    model = guard(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=BF16))
    with fault(model, DOWN, "sticky"), pytest.raises(DeviceLostError, match="Next: start again"):
        model.generate(IDS, max_new_tokens=2)
    verdict = facts_of("cpu").verdict(BFLOAT16)
    assert verdict.kind is VerdictKind.CRASHES
    assert "lost the device" in verdict.reason
    with pytest.warns(SafeDtypeWarning, match="Loading float32 instead"):
        assert SafeAutoModel.from_pretrained(folder, dtype=BF16).dtype == FP32
    assert facts_of("cpu", refresh=True).verdict(BFLOAT16).kind is not VerdictKind.CRASHES


def test_unknown_state_is_not_guessed() -> None:
    """A call that continues from a state of an unknown class is refused clearly, with the model cured."""

    class OwnCache(transformers.DynamicCache):
        pass

    model = guard(tiny())
    with fault(model, DOWN, "cublas"), pytest.raises(CannotResumeError, match="call again; the model is in float32"):
        model(input_ids=IDS, past_key_values=OwnCache())
    model(input_ids=IDS, past_key_values=OwnCache())
