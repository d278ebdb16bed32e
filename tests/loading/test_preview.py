"""What a plan says before anything is loaded is what the load then does: the same code, the same answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import factories as f
import pytest
import torch
from engineered import saved as engineered_saved
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe_dtype import SafeAutoModel, SafeDtypeWarning, make_plan, plan_of, read_checkpoint
from safe_dtype.devices import prior_facts
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, CheckpointFacts, DeviceFacts, MemoryFacts
from safe_dtype.loading import Request, plan_request
from safe_dtype.loading.trials.float16 import plan_with_half
from safe_dtype.planning import Plan

# The CPU of this machine with the rates of others: only which plan is made depends on them.
DEVICES = {"amx": replace(f.AMX_CPU, device="cpu"), "t4": replace(f.TURING, device="cpu")}


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[DeviceFacts], None]:
    """Return a function that gives the CPU other rates."""
    planner = import_module("safe_dtype.loading.plan_request")
    return lambda device: monkeypatch.setattr(planner, "device_for", lambda *_: device)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Callable[[str], Path]:
    """Return a function that gives the bundled model, saved in a dtype."""

    def folder(dtype: str) -> Path:
        made = tmp_path_factory.mktemp(dtype)
        AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=dtype).save_pretrained(made)
        AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(made)
        return made

    return folder


@pytest.fixture(scope="module")
def overflows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a Llama whose activations leave float16's range."""
    made: dict[str, Path] = {}

    def folder(dtype: str) -> Path:
        if dtype not in made:
            made[dtype] = engineered_saved("llama", tmp_path_factory.mktemp(dtype), dtype=getattr(torch, dtype))
        return made[dtype]

    return folder


def preview(folder: Path, **given: Any) -> Plan:
    """Return the plan that is shown before anything is loaded."""
    policy = given.pop("policy", None)
    return plan_request(Request(str(folder), given), policy)


def loaded(folder: Path, **given: Any) -> Plan:
    """Return the plan of the model that is loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        return plan_of(SafeAutoModel.from_pretrained(str(folder), **given))


def choice(plan: Plan) -> tuple[Any, ...]:
    """Return what a plan decides."""
    return plan.storage, plan.compute, plan.device_map, plan.attention


@pytest.mark.parametrize(
    ("kind", "dtype", "device"),
    [
        pytest.param("trained", "float32", "amx", marks=pytest.mark.slow),
        ("trained", "bfloat16", "amx"),
        pytest.param("trained", "float16", "amx", marks=pytest.mark.slow),
        pytest.param("trained", "float32", "t4", marks=pytest.mark.slow),
        ("trained", "bfloat16", "t4"),
        pytest.param("trained", "float16", "t4", marks=pytest.mark.slow),
        pytest.param("overflows", "bfloat16", "amx", marks=pytest.mark.slow),
        ("overflows", "bfloat16", "t4"),
        pytest.param("overflows", "float32", "t4", marks=pytest.mark.slow),
    ],
)
def test_preview_is_the_load(
    kind: str, dtype: str, device: str, trained: Callable[[str], Path], overflows: Callable[[str], Path],
    on_device: Callable[[DeviceFacts], None],
) -> None:  # fmt: skip
    """Before anything was measured, and after: what is shown is what is loaded, in the same dtype with the same kernels."""
    folder = trained(dtype) if kind == "trained" else overflows(dtype)
    on_device(DEVICES[device])
    before, plan, after = preview(folder), loaded(folder), preview(folder)
    assert choice(before) == choice(plan) == choice(after)
    assert (plan.pending, after.pending) == (False, False)
    assert (after.rescale, after.islands) == (plan.rescale, plan.islands)
    if device == "t4":
        assert plan.storage == FLOAT16


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_what_cannot_be_rescued(
    dtype: str, overflows: Callable[[str], Path], on_device: Callable[[DeviceFacts], None]
) -> None:
    """A model that comes out otherwise than expected was announced as pending, and is shown as it is from then on."""
    on_device(DEVICES["t4"])
    folder, policy = overflows(dtype), "auto,max_drift=1e-9"
    before, plan, after = (
        preview(folder, policy=policy), loaded(folder, policy=policy), preview(folder, policy=policy),
    )  # fmt: skip
    assert before.pending
    assert "safe-dtype rescue" in before.reason
    assert (plan.storage, plan.pending) == (FLOAT32, False)
    assert choice(after) == choice(plan)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_what_has_no_tokenizer(
    dtype: str, saved: Callable[..., Path], on_device: Callable[[DeviceFacts], None]
) -> None:
    """Rounding is measured with a tokenizer only: without one it is not expected to be well, and the load leaves it."""
    on_device(DEVICES["amx"])
    folder = saved("qwen3", dtype)
    assert choice(preview(folder)) == choice(loaded(folder))


def test_what_reads_no_text(saved: Callable[..., Path], on_device: Callable[[DeviceFacts], None]) -> None:
    """What is measured is measured on a text: nothing is expected of a model that reads something else."""
    on_device(DEVICES["t4"])
    folder = saved("whisper", "bfloat16")
    before, plan = preview(folder), loaded(folder)
    assert not before.pending
    assert choice(before) == choice(plan)


def test_order_for_float16(overflows: Callable[[str], Path], on_device: Callable[[DeviceFacts], None]) -> None:
    """An order is shown as it will be loaded: rescaled, and without a warning of wrong results."""
    on_device(DEVICES["amx"])
    folder = overflows("bfloat16")
    before, plan = preview(folder, dtype="float16"), loaded(folder, dtype="float16")
    assert (before.storage, before.pending, before.warnings) == (FLOAT16, True, ())
    assert (plan.storage, plan.pending, plan.warnings) == (FLOAT16, False, ())
    assert plan.rescale is not None


def test_pending_plan_is_measured_before_it_is_used(
    overflows: Callable[[str], Path], on_device: Callable[[DeviceFacts], None]
) -> None:
    """A plan that was only expected, passed as `plan=`, is measured first: a model that overflows comes rescaled."""
    on_device(DEVICES["t4"])
    folder = overflows("bfloat16")
    before = replace(preview(folder), made_for=None)
    assert before.pending
    plan = loaded(folder, plan=before)
    assert (plan.storage, plan.pending) == (FLOAT16, False)
    assert plan.rescale is not None


def test_elsewhere_reads_what_was_measured_here(
    overflows: Callable[[str], Path], on_device: Callable[[DeviceFacts], None]
) -> None:
    """How large activations become does not depend on the device: a plan for another one rests on what was measured here."""
    folder = str(overflows("bfloat16"))
    t4 = prior_facts("NVIDIA Tesla T4")
    cold = plan_request(Request(folder, {}), device=t4)
    assert (cold.storage, cold.pending) == (FLOAT16, True)
    assert choice(cold) == choice(make_plan(t4, read_checkpoint(folder)))
    on_device(DEVICES["t4"])
    here = loaded(overflows("bfloat16"))
    warm = plan_request(Request(folder, {}), device=t4)
    assert (warm.storage, warm.pending, warm.rescale) == (FLOAT16, False, here.rescale)
    assert warm.chosen is not None
    assert "measured on T4" in warm.chosen.reason


@pytest.mark.slow
def test_another_attention_is_another_measurement(
    overflows: Callable[[str], Path], on_device: Callable[[DeviceFacts], None]
) -> None:
    """What overflows may depend on the attention: what was measured with another one says nothing."""
    on_device(DEVICES["t4"])
    folder = overflows("bfloat16")
    loaded(folder, attn_implementation="eager")
    t4 = prior_facts("NVIDIA Tesla T4")
    assert plan_request(Request(str(folder), {}), device=t4).pending
    assert not plan_request(Request(str(folder), {"attn_implementation": "eager"}), device=t4).pending


def too_small(folder: Path) -> tuple[DeviceFacts, CheckpointFacts]:
    """Return the facts of a card that `folder` does not fit on, and of the checkpoint."""
    memory = MemoryFacts(100_000, 100_000, "device")
    return replace(f.TURING, device="cuda:0", vendor="nvidia", memory=memory), read_checkpoint(folder)


def test_measured_in_main_memory(trained: Callable[[str], Path]) -> None:
    """What does not fit on the card is measured in main memory, and spread in the dtype that is native there."""
    folder = trained("bfloat16")
    device, checkpoint = too_small(folder)
    plain = make_plan(device, checkpoint, expected=())
    assert (plain.storage, plain.device_map) == (BFLOAT16, "auto")
    request = Request(str(folder), {})
    plan, facts, expected = plan_with_half(plain, request, device, checkpoint, None, measure=False)
    assert (plan.storage, plan.device_map, plan.pending) == (FLOAT16, "auto", True)
    assert expected
    plan, facts, expected = plan_with_half(plain, request, device, checkpoint, None, measure=True)
    assert (plan.storage, plan.device_map, plan.pending, expected) == (FLOAT16, "auto", False, ())
    assert facts.half is not None


def test_rescaled_and_offloaded(overflows: Callable[[str], Path]) -> None:
    """A model that has to be rescaled is not spread in float16, whatever was expected: offloaded weights are not rescaled."""
    folder = overflows("bfloat16")
    device, checkpoint = too_small(folder)
    plain = make_plan(device, checkpoint, expected=())
    plan, facts, _ = plan_with_half(plain, Request(str(folder), {}), device, checkpoint, None, measure=True)
    assert facts.half is not None
    assert facts.half.rescale is not None
    assert (plan.storage, plan.device_map, plan.rescale) == (BFLOAT16, "auto", None)
