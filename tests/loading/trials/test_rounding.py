"""The drift gate: real checkpoints, real runs; only the device's rates are made up, so that 16 bit is worth it."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import factories as f
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe_dtype import SafeAutoModel, patched
from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.facts import BFLOAT16, FLOAT32, DeviceFacts, MemoryFacts, VerdictKind
from safe_dtype.loading import Request
from safe_dtype.loading.trials.rounding import plan_with_drifts
from safe_dtype.planning import Ground, Plan, Policy, make_plan
from safe_dtype.store import cache_folder

CPU = replace(f.AMX_CPU, device="cpu")
BLOCKS = replace(
    CPU,
    verdicts=(
        *CPU.verdicts,
        f.verdict(FLOAT32, VerdictKind.NATIVE, 9, 100, op="matmul_narrow"),
        f.verdict(BFLOAT16, VerdictKind.NATIVE, 60, 1600, op="matmul_blocks"),
        f.verdict(BFLOAT16, VerdictKind.NATIVE, 60, 1500, op="matmul_blocks_cast"),
    ),
)


# bfloat16 is fast where it is cast to, and slow where it is stored.
CASTS = replace(
    CPU,
    verdicts=(
        f.verdict(FLOAT32, VerdictKind.NATIVE, 28, 150),
        f.verdict(BFLOAT16, VerdictKind.SLOW, 2, 15),
        f.verdict(FLOAT32, VerdictKind.NATIVE, 9, 1500, op="matmul_narrow"),
    ),
)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """The bundled model, saved in float32."""
    folder = tmp_path_factory.mktemp("float32")
    AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype="float32").save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


def gated(folder: Path, device: DeviceFacts = CPU, policy: Policy | None = None, *, measure: bool = True) -> Plan:
    """Return the plan for `folder` after the gate."""
    checkpoint = read_checkpoint(folder)
    plan = make_plan(device, checkpoint, policy)
    return plan_with_drifts(plan, Request(folder, {}), device, checkpoint, policy, measure=measure)


def test_rounded_where_it_may_be(in_float32: Path) -> None:
    """bfloat16 drifts little on the bundled model, so it is planned, and the reason has the figures."""
    plan = gated(in_float32)
    assert plan.storage == BFLOAT16
    assert plan.chosen is not None
    assert "nats to float32" in plan.chosen.reason


@pytest.mark.slow
def test_blocks_are_measured_as_they_run(in_float32: Path) -> None:
    """Weights in float32 that are multiplied from bfloat16 blocks drift too, and less than a model in bfloat16."""
    between = Policy(max_drift=6e-5)  # 3e-5 and 1.1e-4 nats
    plan = gated(in_float32, BLOCKS, between)
    assert (plan.storage, plan.compute) == (FLOAT32, BFLOAT16)
    assert plan.chosen is not None
    assert "nats to float32" in plan.chosen.reason
    whole = gated(in_float32, CPU, between)
    (rejected,) = (one for one in whole.decisions if one.ground is Ground.DRIFT)
    assert str(rejected.candidate) == "bfloat16"


def test_casts_are_measured_as_they_run(in_float32: Path) -> None:
    """Weights in float32 that are cast to bfloat16 on the way, without blocks, drift as their products do."""
    prompts = Policy.parse("prompt=512,new=0")
    plan = gated(in_float32, CASTS, prompts)
    assert (plan.storage, plan.compute) == (FLOAT32, BFLOAT16)
    assert plan.routes is not None
    assert plan.routes.layout == "plain"
    assert plan.routes.cast_from is not None
    kept = gated(in_float32, CASTS, replace(prompts, max_drift=1e-9))
    assert kept.compute == FLOAT32
    assert "float32 stored, bfloat16 computed" in [
        str(one.candidate) for one in kept.decisions if one.ground is Ground.DRIFT
    ]


def test_kept_where_it_drifts(in_float32: Path) -> None:
    """Beyond the policy's limit the checkpoint stays in float32, with the figures as the reason."""
    plan = gated(in_float32, policy=Policy(max_drift=1e-9))
    assert plan.storage == FLOAT32
    (rejected,) = (one for one in plan.decisions if one.ground is Ground.DRIFT)
    assert "mean KL" in rejected.reason


def test_measured_once(in_float32: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was measured is remembered, for a copy of the same files as well, and then nothing is loaded."""
    with caplog.at_level(logging.WARNING, "safe_dtype"):
        assert gated(in_float32).storage == BFLOAT16
        assert sum("once" in one.message for one in caplog.records) == 1
        copied = shutil.copytree(in_float32, tmp_path / "copy")
        assert gated(copied, measure=False).storage == BFLOAT16
        assert sum("once" in one.message for one in caplog.records) == 1


def test_under_the_patch(in_float32: Path) -> None:
    """Where transformers is patched, the models that are compared are plain ones all the same."""
    plain = gated(in_float32)
    for file in cache_folder().glob("*.json"):
        file.unlink()
    with patched():
        assert gated(in_float32) == plain


def test_ranks_do_not_ask(in_float32: Path) -> None:
    """Where several processes load the model, none of them decides on its own to round it."""
    assert gated(in_float32, replace(CPU, memory=MemoryFacts(0, 0, "ranks"))).storage == FLOAT32


@pytest.mark.slow
def test_patched_programs_are_not_rounded(in_float32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SafeAutoModel may round; a program that is only patched may train, and its weights stay as they are."""
    monkeypatch.setattr(import_module("safe_dtype.loading.plan_request"), "device_for", lambda *_: CPU)
    assert SafeAutoModel.from_pretrained(in_float32).dtype == torch.bfloat16
    with patched():
        assert AutoModelForCausalLM.from_pretrained(in_float32).dtype == torch.float32


@pytest.mark.slow
def test_other_weights_are_measured_again(in_float32: Path, tmp_path: Path) -> None:
    """The same architecture with other numbers is another checkpoint."""
    gated(in_float32)
    copied = shutil.copytree(in_float32, tmp_path / "copy")
    model = AutoModelForCausalLM.from_pretrained(copied, dtype="float32")
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
    model.save_pretrained(copied)
    assert gated(copied, measure=False).pending


def test_planning_alone_measures_nothing(in_float32: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A plan that only reads headers expects what a load would come to, and says what that measures first."""
    plan = gated(in_float32, measure=False)
    assert not [one for one in caplog.records if "once" in one.message]
    assert (plan.storage, plan.pending) == (BFLOAT16, True)
    assert "measured at the first load" in plan.reason


def test_nothing_to_ask_it(in_float32: Path, tmp_path: Path) -> None:
    """Without a tokenizer there is no text to run it on: it stays in float32, the reason says so, and is remembered."""
    copied = shutil.copytree(in_float32, tmp_path / "copy")
    for file in copied.glob("*token*"):
        file.unlink()
    plan = gated(copied)
    assert plan.storage == FLOAT32
    assert any("not measured (" in one.reason for one in plan.decisions)
    assert gated(copied, measure=False) == plan
