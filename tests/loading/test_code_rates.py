"""Linear weights in 8 and 4 bits: chosen where they are asked for or all that fits, gated by what they do to the checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from loading.larger_model import save_larger
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe_dtype import INT4, INT8, Policy, SafeAutoModel, patched, plan_of
from safe_dtype.errors import PolicyError, SafeDtypeWarning
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, MemoryFacts
from safe_dtype.loading import Request, checkpoint_for
from safe_dtype.loading.code_rates import may_round_to
from safe_dtype.loading.load import without_codes
from safe_dtype.loading.plan_request import plan_request
from safe_dtype.models.block_layout import codes_of
from safe_dtype.planning import Ground, Plan

pytestmark = pytest.mark.needs("pagemap")

PLANNING = import_module("safe_dtype.loading.plan_request")
IDS = torch.arange(3, 20)[None]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """A seeded model of 17 million parameters with a tokenizer: large enough to be rounded for its memory."""
    return save_larger(tmp_path_factory.mktemp("larger"), tiny_qwen3, torch.bfloat16)


def coded(model: nn.Module) -> int:
    """Return how many modules multiply by codes."""
    return sum(codes_of(one) is not None for one in model.modules())


def planned(folder: Path, policy: str = "int8", **arguments: Any) -> Plan:
    """Return the plan of a load that would measure later."""
    return plan_request(Request(folder, arguments), policy)


def with_memory(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """Let every device have so many bytes free."""
    device_for = PLANNING.device_for

    def small(request: Request, checkpoint: Any) -> Any:
        return replace(device_for(request, checkpoint), memory=MemoryFacts(free_bytes, free_bytes, "cgroup"))

    monkeypatch.setattr(PLANNING, "device_for", small)


def test_asked_for(tiny_qwen3: Path) -> None:
    """`int8` in the policy measures what 8 bits do to the checkpoint, and multiplies by them; the reason has the figures."""
    model = SafeAutoModel.from_pretrained(tiny_qwen3, policy="int8")
    plan = plan_of(model)
    assert (plan.storage, plan.codes) == (BFLOAT16, INT8)
    assert plan.chosen is not None
    assert "nats to float32" in plan.chosen.reason
    assert "int8, rest bfloat16" in plan.what
    assert not plan.warnings
    assert coded(model) > 20
    assert model.dtype == torch.bfloat16
    assert json.loads(plan.to_json())["codes"] == "int8"


BOTH = pytest.mark.parametrize("policy", ["int8", pytest.param("int4", marks=pytest.mark.slow)])


@pytest.mark.parametrize("codes", [INT8, INT4], ids=str)
def test_codes_that_hold_nothing(codes: Dtype, saved: Callable[..., Path]) -> None:
    """Where no weight could be held in codes, the plan does not claim the dtype that products by them are computed in."""
    coded_plan = replace(planned(saved("qwen3", "float16"), dtype="float16"), compute=FLOAT32, codes=codes)
    plain = without_codes(coded_plan)
    assert (plain.storage, plain.compute, plain.codes, plain.routes) == (FLOAT16, FLOAT16, None, None)
    assert plain.what == "float16"
    assert f"none of its linear weights can be held in {codes}" in plain.reason


def test_4_bits(tiny_qwen3: Path) -> None:
    """`int4` measures what 4 bits do, and multiplies by them where that is within the limit; the head has 8."""
    model = SafeAutoModel.from_pretrained(tiny_qwen3, policy="int4")
    plan = plan_of(model)
    assert (plan.storage, plan.codes, plan.reason) == (BFLOAT16, INT4, "as asked for: int4")
    assert plan.chosen is not None
    assert "4 bits, with a scale for every 32 inputs" in plan.chosen.reason
    assert "nats to float32" in plan.chosen.reason
    assert "int4, rest bfloat16" in plan.what
    assert not plan.warnings
    bits = [codes.coding.bits for one in model.modules() if (codes := codes_of(one))]
    assert sorted(set(bits)) == [4, 8]
    assert bits.count(4) == len(bits) - 1 >= 20


def test_8_bits_are_measured_beside_4(tiny_qwen3: Path) -> None:
    """What stays in 8 bits where others have 4 is predicted by what products by 8 bits were measured to take."""
    beside, alone = (planned(tiny_qwen3, policy).routes for policy in ("int4", "int8"))
    assert beside is not None
    assert alone is not None
    assert beside.in_8_bits == alone.seconds_per_element
    assert alone.in_8_bits is None


@pytest.mark.slow
def test_4_bits_too_far_off(tiny_qwen3: Path) -> None:
    """Beyond the limit the warning has the drift, and the least limit that takes it, which does."""
    with pytest.warns(SafeDtypeWarning, match="int4 was asked for"):
        model = SafeAutoModel.from_pretrained(tiny_qwen3, policy="int4,max_drift=0.001")
    (warning,) = plan_of(model).warnings
    assert "the limit is 0.001" in warning
    assert coded(model) == 0
    advised = warning.partition("--policy ")[2].partition("`")[0]
    assert 0.001 < Policy.parse(advised).max_drift < 0.02
    assert planned(tiny_qwen3, advised).codes == INT4


def test_never_unasked(larger: Path) -> None:
    """For speed and for fidelity no weight is rounded to 8 bits, and none is measured."""
    for policy in ("auto", "prefer=fidelity", "strict"):
        assert plan_of(SafeAutoModel.from_pretrained(larger, policy=policy)).codes is None
        assert not [one for one in planned(larger, policy).decisions if one.candidate.codes]


def test_for_memory(larger: Path) -> None:
    """Who prefers memory gets 8 bits where they were measured to be near enough, and else the dtype that was saved."""
    plan = plan_of(SafeAutoModel.from_pretrained(larger, policy="prefer=memory"))
    assert plan.codes == INT8
    assert plan.reason.startswith("the smallest")
    kept = plan_of(SafeAutoModel.from_pretrained(larger, policy="prefer=memory,max_drift=1e-9"))
    assert (kept.storage, kept.codes) == (BFLOAT16, None)
    (rejected, *_) = (one for one in kept.decisions if one.ground is Ground.DRIFT)
    assert rejected.candidate.codes == INT8
    assert plan_of(SafeAutoModel.from_pretrained(larger, policy="prefer=memory", dtype="bfloat16")).codes is None


def test_small_models_keep_their_bits(tiny_qwen3: Path) -> None:
    """Of two million parameters there is no memory to be saved."""
    assert planned(tiny_qwen3, "prefer=memory").codes is None


def test_mixtures_are_not_measured(saved: Callable[..., Path]) -> None:
    """Of experts no codes are made, so nothing is measured for them, even where 8 bits are asked for."""
    request = Request(saved("mixtral"), {})
    checkpoint = checkpoint_for(request)
    assert any(linear.active < 1 for linear in checkpoint.linears)
    assert not may_round_to(INT8, plan_request(request, "int8"), request, checkpoint)


def test_nothing_else_fits(larger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits in 8 bits alone is loaded so, whatever is preferred, and not left on the disk."""
    sizes = {
        one.candidate.stored: one.cost.bytes for one in planned(larger).decisions if one.ground is not Ground.RANGE
    }
    with_memory(monkeypatch, (sizes["bfloat16"] + min(sizes.values())) // 2)
    model = SafeAutoModel.from_pretrained(larger)
    plan = plan_of(model)
    assert (plan.codes, plan.device_map) == (INT8, None)
    assert "nothing wider that is right here fits" in plan.reason
    assert coded(model) == 29
    with pytest.warns(SafeDtypeWarning, match="leaves the rest on disk"):
        too_far = plan_of(SafeAutoModel.from_pretrained(larger, policy="max_drift=1e-9"))
    assert (too_far.codes, too_far.device_map) == (None, "auto")
    assert not [way for way in too_far.ways if way.name.startswith("int8")]


@pytest.mark.slow
def test_4_bits_where_8_do_not_fit(larger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 8 bits do not fit either, 4 are measured unasked, and loaded; beyond the limit the rest is left on the disk."""
    costs = [planned(larger, codes).cost for codes in ("int8", "int4")]
    with_memory(monkeypatch, sum(cost.bytes for cost in costs if cost) // 2)
    model = SafeAutoModel.from_pretrained(larger)
    plan = plan_of(model)
    assert (plan.codes, plan.device_map) == (INT4, None)
    assert "nothing wider that is right here fits" in plan.reason
    assert coded(model) == 29
    with pytest.warns(SafeDtypeWarning, match="leaves the rest on disk"):
        too_far = plan_of(SafeAutoModel.from_pretrained(larger, policy="max_drift=1e-9"))
    grounds = {one.candidate.codes: one.ground for one in too_far.decisions if one.candidate.codes}
    assert grounds == {INT8: Ground.MEMORY, INT4: Ground.DRIFT}
    assert (too_far.codes, too_far.device_map) == (None, "auto")
    assert not [way for way in too_far.ways if way.name.startswith("int4")]


def test_nothing_fits_at_all(larger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 8 bits are too large as well, what they would take stands among the ways."""
    with_memory(monkeypatch, 1_000_000)
    plan = planned(larger, "auto")
    (way,) = (way for way in plan.ways if way.name == "int8 weights")
    assert not way.fits
    assert "--policy int8" in way.note


def test_too_far_off(tiny_qwen3: Path) -> None:
    """Beyond the policy's limit the checkpoint is loaded as it was saved, and a warning has the figures."""
    with pytest.warns(SafeDtypeWarning, match="int8 was asked for"):
        model = SafeAutoModel.from_pretrained(tiny_qwen3, policy="int8,max_drift=1e-9")
    (warning,) = plan_of(model).warnings
    assert "int8 was asked for, and bfloat16" in warning
    assert "mean KL" in warning
    assert coded(model) == 0


def test_no_text(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Without a tokenizer nothing can be measured: who asks for 8 bits gets them with a warning, nobody else does."""
    copied = shutil.copytree(tiny_qwen3, tmp_path / "copy")
    for file in copied.glob("*token*"):
        file.unlink()
    with pytest.warns(SafeDtypeWarning, match="int8 was asked for"):
        model = SafeAutoModel.from_pretrained(copied, policy="int8")
    assert coded(model) > 20
    (warning,) = plan_of(model).warnings
    assert "was not measured" in warning


def test_patched(tiny_qwen3: Path) -> None:
    """A patched program that asks for 8 bits gets them, measured as well."""
    with patched("int8"):
        model = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    assert plan_of(model).codes == INT8
    assert coded(model) > 20


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype(tiny_qwen3: Path, dtype: str) -> None:
    """An order for another dtype than the files' is obeyed: those weights are no views of files."""
    with pytest.warns(SafeDtypeWarning, match="int8 was asked for"):
        model = SafeAutoModel.from_pretrained(tiny_qwen3, policy="int8", dtype=dtype)
    assert coded(model) == 0
    assert str(model.dtype) == f"torch.{dtype}"
    assert any("int8 was asked for" in warning for warning in plan_of(model).warnings)


def test_the_same_dtype(tiny_qwen3: Path) -> None:
    """An order for the dtype of the files and 8 bits go together."""
    model = SafeAutoModel.from_pretrained(tiny_qwen3, policy="int8", dtype="bfloat16")
    assert coded(model) > 20


@BOTH
def test_from_float32(tiny_qwen3: Path, tmp_path: Path, policy: str) -> None:
    """A checkpoint in float32 keeps its activations there; its state and files are float32's."""
    AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype="float32").save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(tmp_path / "saved")
    model = SafeAutoModel.from_pretrained(tmp_path / "saved", policy=policy)
    assert (plan_of(model).storage, str(plan_of(model).codes)) == (FLOAT32, policy)
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "again"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_strict() -> None:
    """Strict mode changes nothing, so it cannot round."""
    with pytest.raises(PolicyError, match="strict changes nothing"):
        Policy.parse("strict,int8")


def test_words() -> None:
    """The word is read and written."""
    assert Policy.parse("int8").int8
    assert str(Policy(int8=True)) == "auto,prefer=speed,int8"
    with pytest.raises(PolicyError, match="int8"):
        Policy.parse("int_8")


def test_remembered(tiny_qwen3: Path) -> None:
    """A plan that only reads expects what a load would come to; after one it has the figures."""
    assert planned(tiny_qwen3).pending
    SafeAutoModel.from_pretrained(tiny_qwen3, policy="int8")
    plan = planned(tiny_qwen3)
    assert (plan.codes, plan.pending) == (INT8, False)


@BOTH
def test_generate_steps_down(tiny_qwen3: Path, policy: str) -> None:
    """A model by codes that goes to float32 gets the bits of its files there, and goes on."""
    model = SafeAutoModel.from_pretrained(tiny_qwen3, policy=policy)
    assert coded(model) > 20
    layer = model.model.layers[1].mlp

    def fails(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * torch.nan if output.dtype == torch.bfloat16 else output

    layer.register_forward_hook(fails)
    answer = model.generate(IDS, max_new_tokens=8, do_sample=False)
    plain = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype="float32")
    assert torch.equal(answer, plain.generate(IDS, max_new_tokens=8, do_sample=False))
    if model.dtype == torch.float32:
        assert coded(model) == 0
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
