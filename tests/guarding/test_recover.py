"""What a failure leads to: a remedy, an error that carries every attempt, or nothing at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import transformers
from guarding.generators import DOWN, tiny
from tiny_models import TINY

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, NoDtypeLeft, SafeAutoModel, SafeDtypeWarning, guard, report
from safe_dtype.devices import facts_of
from safe_dtype.errors import DeviceLostError, StrictModeError
from safe_dtype.facts import MemoryFacts, VerdictKind
from safe_dtype.guarding import FailureKind
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_warns_of_an_ordered_dtype(tmp_path: Path) -> None:
    """A dtype that was asked for and fails is warned of once, with the one that helped: float16 fails in the same step."""
    model = SafeAutoModel.from_pretrained(
        TINY["qwen3"].save(tmp_path, BF16), dtype=BF16, policy="ladder=bf16>fp16>fp32"
    )
    with (
        fault(model, DOWN, "cublas"),
        fault(model, "model.layers.0.mlp.down_proj", "cublas", dtype=FLOAT16),
        pytest.warns(SafeDtypeWarning, match=r"bfloat16 was asked for.*Going on in float32") as warned,
    ):
        model.generate(IDS, max_new_tokens=2)
    assert len([one for one in warned if "asked for" in str(one.message)]) == 1
    assert [event.after for event in report(model).events] == [FLOAT16, FLOAT32]


def test_no_dtype_is_advised_that_did_not_help(tmp_path: Path) -> None:
    """NaN that comes in float32 as well is the model's own: nobody is told to load in another dtype."""
    model = SafeAutoModel.from_pretrained(TINY["qwen3"].save(tmp_path, BF16), dtype=BF16)
    with torch.no_grad():
        model.get_submodule(DOWN).weight[0, 0] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SafeDtypeWarning)
        model.generate(IDS, max_new_tokens=2)
    assert {one.dtype for one in model.parameters()} == {BF16}


def test_warning_that_is_an_error(tmp_path: Path) -> None:
    """Where the caller makes errors of warnings ours ends the generation; it is no failure, and the model is cured."""
    model = SafeAutoModel.from_pretrained(
        TINY["qwen3"].save(tmp_path, BF16), dtype=BF16, policy="ladder=bf16>fp16>fp32"
    )
    with fault(model, DOWN, "not_implemented"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", SafeDtypeWarning)
            with pytest.raises(SafeDtypeWarning, match="Going on in float16"):
                model.generate(IDS, max_new_tokens=2)
        model.generate(IDS, max_new_tokens=2)
    assert [event.after for event in report(model).events] == [FLOAT16]


def test_strict_changes_nothing() -> None:
    """In strict mode the failure is an error that names what would work; the model stays as it is."""
    model = guard(tiny(), policy="strict")
    with fault(model, DOWN, "cublas"), pytest.raises(StrictModeError, match="Would work: float32") as caught:
        model.generate(IDS, max_new_tokens=2)
    assert "CUBLAS" in str(caught.value.__cause__)
    assert caught.value.args == (caught.value.ordered, caught.value.reason, ("float32",))
    assert "ordered" not in str(caught.value)
    assert str(caught.value).startswith(
        "In strict mode this model stays in bfloat16, and it failed: op_unsupported in"
    )
    with fault(model, DOWN, "nan"), pytest.raises(StrictModeError, match=f"nonfinite in {DOWN}.*: NaN or Inf in the"):
        model.generate(IDS, max_new_tokens=2)
    assert {one.dtype for one in model.parameters()} == {BF16}
    assert report(model).events == ()


def test_no_dtype_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float32 would cure it and there is no room for it, the error carries every attempt and its cause."""
    model = guard(tiny())
    monkeypatch.setattr("safe_dtype.devices.memory.memory_of", lambda device: MemoryFacts(2000, 1000, "test"))
    with fault(model, DOWN, "cublas"), pytest.raises(NoDtypeLeft, match="1,000 are free") as caught:
        model.generate(IDS, max_new_tokens=2)
    (attempt,) = caught.value.attempts
    assert attempt.remedy == "float32"
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert {one.dtype for one in model.parameters()} == {BF16}


def test_what_no_dtype_cures() -> None:
    """Where float32 fails as well the error is the caller's own, and nothing has changed."""
    model = guard(tiny())
    with (
        fault(model, DOWN, "cublas"),
        fault(model, DOWN, "cublas", dtype=FLOAT32),
        pytest.raises(RuntimeError, match=r"^CUDA error: CUBLAS") as caught,
    ):
        model.generate(IDS, max_new_tokens=2)
    assert type(caught.value) is RuntimeError
    assert {one.dtype for one in model.parameters()} == {BF16}
    assert report(model).events == ()
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
