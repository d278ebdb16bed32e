"""From the arguments of from_pretrained to a plan."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from safe_dtype import BFLOAT16, Policy, SafeAutoModel, SafeDtypeWarning, plan_of
from safe_dtype.devices import facts_of
from safe_dtype.devices.probing.verdicts import measured_while_busy
from safe_dtype.errors import ConflictError, PolicyError, StrictModeError
from safe_dtype.facts import FLOAT16, VerdictKind
from safe_dtype.loading import Request, plan_request

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"},
                                   {"torch_dtype": torch.float32, "dtype": torch.bfloat16}], ids=str)  # fmt: skip
def test_dtype_arguments(given: dict[str, Any], saved: Callable[..., Path]) -> None:
    """`dtype` and `torch_dtype` are taken as transformers takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        model = SafeAutoModel.from_pretrained(saved("qwen3", "float32"), **given)
    assert model.dtype == torch.bfloat16
    assert plan_of(model).ordered == BFLOAT16


@pytest.mark.parametrize("given", [{}, {"dtype": None}, {"dtype": "auto"}, {"torch_dtype": "auto"}], ids=str)
def test_dtype_left_to_us(given: dict[str, Any], saved: Callable[..., Path]) -> None:
    """No dtype, None and "auto" leave the choice to the plan."""
    model = SafeAutoModel.from_pretrained(saved("qwen3"), **given)
    assert plan_of(model).ordered is None
    assert model.dtype == DTYPES[plan_of(model).storage.name]


def test_policy(saved: Callable[..., Path]) -> None:
    """A policy is taken as an object or as text, and decides."""
    small = SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory")
    exact = SafeAutoModel.from_pretrained(saved("qwen3"), policy=Policy(prefer="fidelity"))
    assert (small.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(PolicyError):
        SafeAutoModel.from_pretrained(saved("qwen3"), policy="quickly")


def test_memory_rounds_no_float16(saved: Callable[..., Path]) -> None:
    """A float16 checkpoint stays as it is under prefer=memory: bfloat16 would save no byte."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SafeDtypeWarning)
        model = SafeAutoModel.from_pretrained(saved("qwen3", "float16"), policy="prefer=memory")
    assert model.dtype == torch.float16


@pytest.mark.parametrize("policy", ["ladder=fp16>fp32", "ladder=fp16"])
def test_float16_by_the_ladder_on_busy_cores(policy: str, saved: Callable[..., Path]) -> None:
    """Rates that were measured while others ran decide nothing where the ladder asks for float16."""
    device = facts_of("cpu")
    busy = tuple(replace(one, reason="busy cores: one thread was measured") for one in device.verdicts)
    assert measured_while_busy(busy[0])
    plan = plan_request(Request(saved("qwen3"), {}), policy, device=replace(device, verdicts=busy))
    assert (plan.storage, plan.pending) == (FLOAT16, True)


def test_an_order_beside_float16_alone(saved: Callable[..., Path]) -> None:
    """Where a dtype is ordered that cannot be had, and float16 is all that is left on the ladder, the plan says so."""
    device = facts_of("cpu")
    without = tuple(
        replace(one, kind=VerdictKind.UNSUPPORTED, reason="no such products") if one.dtype == BFLOAT16 else one
        for one in device.verdicts
    )
    request = Request(saved("qwen3"), {"dtype": "bfloat16"})
    plan = plan_request(request, "ladder=bf16>fp16", device=replace(device, verdicts=without))
    assert (plan.storage, plan.pending, plan.ordered) == (FLOAT16, True, BFLOAT16)
    assert any("bfloat16 was asked for" in warning for warning in plan.warnings)


@pytest.mark.parametrize("claimed", ["float32", "float16", "bfloat16", None])
@pytest.mark.parametrize("files", ["float32", "float16", "bfloat16"])
def test_strict_is_transformers_own(
    files: str, claimed: str | None, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """Where the config and the files contradict each other, strict mode loads what transformers loads."""
    folder = Path(shutil.copytree(saved("qwen3", files), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": claimed}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        model = SafeAutoModel.from_pretrained(folder, policy="strict")
    assert model.dtype == transformers.AutoModel.from_pretrained(folder).dtype
    assert (
        plan_of(model).reason
        == ("as saved" if claimed in (files, None) else "as its config says") + ", in strict mode"
    )


def test_strict_keeps_saved(saved: Callable[..., Path]) -> None:
    """In strict mode the model comes as saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SafeDtypeWarning)
        assert SafeAutoModel.from_pretrained(saved("qwen3"), policy="strict").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_no_compute_dtype(dtype: torch.dtype, saved: Callable[..., Path]) -> None:
    """A dtype that no model computes in is an error that names those that do."""
    with pytest.raises(StrictModeError, match=r"Would work: .*float32"):
        SafeAutoModel.from_pretrained(saved("qwen3"), dtype=dtype)


def test_given_plan(saved: Callable[..., Path]) -> None:
    """A plan that was made before is followed, and nothing is decided again."""
    plan = plan_of(SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory"))
    model = SafeAutoModel.from_pretrained(saved("qwen3"), plan=plan)
    assert plan_of(model) is plan
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("given", [{"dtype": "float32"}, {"policy": "prefer=fidelity"}], ids=str)
def test_conflict(given: dict[str, Any], saved: Callable[..., Path]) -> None:
    """A plan and an argument that contradicts it are an error, not a silent override."""
    plan = plan_of(SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory"))
    with pytest.raises(ConflictError):
        SafeAutoModel.from_pretrained(saved("qwen3"), plan=plan, **given)


def test_attention_conflict(saved: Callable[..., Path]) -> None:
    """The plan's attention implementation is used where the caller names none, and a different one is an error."""
    plan = plan_of(SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory"))
    eager = replace(plan, attention="eager")
    assert SafeAutoModel.from_pretrained(saved("qwen3"), plan=eager).config._attn_implementation == "eager"
    with pytest.raises(ConflictError, match="attn_implementation"):
        SafeAutoModel.from_pretrained(saved("qwen3"), plan=eager, attn_implementation="sdpa")


def test_too_little_memory(tmp_path: Path) -> None:
    """A model larger than `max_memory` is spread to disk with device_map, says so, and still answers the same."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    plain = transformers.Qwen3ForCausalLM(config).eval()
    plain.save_pretrained(tmp_path)
    with pytest.warns(SafeDtypeWarning, match="device_map='auto'"):
        model = SafeAutoModel.from_pretrained(tmp_path, max_memory={"cpu": "3MB"})
    assert plan_of(model).device_map == "auto"
    assert "disk" in set(model.hf_device_map.values())
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, plain(ids).logits)
