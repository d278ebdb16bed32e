"""A float32 checkpoint of 16-bit numbers is loaded in half the memory, and is float32 for whoever looks at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loading.larger_model import save_larger
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from safe_dtype import SafeAutoModel, patched, plan_of
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.loading import Request, checkpoint_for
from safe_dtype.loading.narrow_rates import may_be_narrow
from safe_dtype.loading.plan_request import plan_request
from safe_dtype.models.block_layout import narrow_of

pytestmark = pytest.mark.needs("pagemap")

IDS = torch.arange(3, 20)[None]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def cast_up(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """A seeded model of 17 million bfloat16 numbers, saved in float32."""
    return save_larger(tmp_path_factory.mktemp("cast_up"), tiny_qwen3, torch.float32)


def narrowed(model: nn.Module) -> int:
    """Return how many modules multiply by weights in 16 bit."""
    return sum(narrow_of(one) is not None for one in model.modules())


def tokens(model: Any) -> list[int]:
    """Return what follows, greedily."""
    return model.generate(IDS, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0].tolist()


def test_loaded(cast_up: Path, tmp_path: Path) -> None:
    """It is held in bfloat16; dtype, tokens and saved files are those of float32."""
    model = SafeAutoModel.from_pretrained(cast_up, policy="prefer=fidelity")
    plan = plan_of(model)
    assert (plan.storage, plan.compute, plan.codes) == (FLOAT32, FLOAT32, BFLOAT16)
    assert "every weight is a bfloat16 number" in plan.explain()
    assert (model.dtype, narrowed(model)) == (torch.float32, 29)
    plain = AutoModelForCausalLM.from_pretrained(cast_up)
    assert tokens(model) == tokens(plain)
    model.save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (cast_up, tmp_path))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_patched(cast_up: Path) -> None:
    """A program that is patched gets it by default, since nothing is rounded."""
    with patched():
        model = AutoModelForCausalLM.from_pretrained(cast_up)
    assert narrowed(model) == 29


@pytest.mark.parametrize(
    ("policy", "arguments", "held"),
    [
        ("auto", {"dtype": "float32"}, 29),
        ("strict", {}, 0),
        ("auto", {"dtype": "bfloat16"}, 0),
    ],
    ids=["ordered", "strict", "another-dtype"],
)
def test_who_gets_it(policy: str, arguments: dict[str, Any], held: int, cast_up: Path) -> None:
    """Whoever wants float32 gets its numbers, held in 16 bit; strict mode leaves the weights as they are."""
    model = SafeAutoModel.from_pretrained(cast_up, policy=policy, **arguments)
    assert narrowed(model) == held


def test_a_step_down(cast_up: Path) -> None:
    """A model that fails in float32 and goes on in bfloat16 has the bits of its files there."""
    model = SafeAutoModel.from_pretrained(cast_up, policy="ladder=fp32>bf16")
    assert narrowed(model) == 29

    def fails(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        if output.dtype == torch.float32:
            raise RuntimeError("\"silu_cpu\" not implemented for 'Float'")
        return output

    model.model.layers[1].mlp.register_forward_hook(fails)
    plain = AutoModelForCausalLM.from_pretrained(cast_up, dtype="bfloat16")
    assert tokens(model) == tokens(plain)


@pytest.mark.parametrize(
    ("policy", "changed"),
    [("prefer=fidelity", True), ("strict", False), ("ladder=fp32", True)],
    ids=["fidelity", "strict", "ladder"],
)
def test_what_is_not_measured(policy: str, changed: bool, cast_up: Path, tmp_path: Path) -> None:
    """Where weights would have to be rounded and may not be, or nothing is changed, no product is measured for them."""
    folder = cast_up
    if changed:
        model = AutoModelForCausalLM.from_pretrained(cast_up)
        for one in model.parameters():
            one.data.mul_(1 + 2**-20)
        model.save_pretrained(folder := tmp_path / "changed")
    request = Request(folder, {})
    assert not may_be_narrow(plan_request(request, policy), request, checkpoint_for(request))


def test_numbers_that_no_sample_shows(cast_up: Path, tmp_path: Path) -> None:
    """Where each weight has another number, wherever that is, the plan says in the end that none is held in 16 bit."""
    model = AutoModelForCausalLM.from_pretrained(cast_up)
    for one in model.parameters():
        one.data.view(-1)[one.numel() // 3] = 1 + 2**-20
    model.save_pretrained(tmp_path)
    loaded = SafeAutoModel.from_pretrained(tmp_path, policy="prefer=fidelity")
    plan = plan_of(loaded)
    assert (narrowed(loaded), plan.storage, plan.codes) == (0, FLOAT32, None)
    assert "none of its linear weights can be held in bfloat16" in plan.reason
    assert tokens(loaded) == tokens(model.eval())


def test_small_models(saved: Callable[..., Path]) -> None:
    """Of a small model there is nothing to be saved."""
    request = Request(saved("qwen3", "float32"), {})
    assert not may_be_narrow(plan_request(request), request, checkpoint_for(request))
