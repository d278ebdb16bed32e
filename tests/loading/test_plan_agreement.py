"""A plan that is passed for another checkpoint, device or software than it was made for is an error, and no other is."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from publishing.client import connect
from publishing.loopback import LoopbackHub
from tiny_models import TINY

from safe_dtype import Plan, SafeAutoModel, make_plan, plan_of, read_checkpoint
from safe_dtype.devices import prior_facts
from safe_dtype.errors import StalePlanError
from safe_dtype.loading import Request, plan_request


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return TINY["qwen3"].save(tmp_path_factory.mktemp("made_for") / "model", torch.bfloat16)


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """The plan for it on the CPU."""
    return plan_request(Request(folder, {"device_map": "cpu"}), "prefer=memory")


def trained_on(folder: Path, where: Path) -> Path:
    """Return a copy whose weights are others of the same names and shapes."""
    model = TINY["qwen3"].make()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    shutil.copytree(folder, where)
    model.to(torch.bfloat16).save_pretrained(where)
    return where


def loaded(source: Any, plan: Plan, **arguments: Any) -> Plan:
    """Return the plan of what was loaded with `plan`."""
    return plan_of(SafeAutoModel.from_pretrained(source, plan=plan, **arguments))


@pytest.mark.parametrize("arguments", [{}, {"device_map": "cpu"}, {"device_map": "auto"}, {"device_map": {"": "cpu"}}],
                         ids=str)  # fmt: skip
def test_the_same(folder: Path, plan: Plan, arguments: dict[str, Any]) -> None:
    """The checkpoint and the device that it was made for, named in any way."""
    assert loaded(folder, plan, **arguments) is plan


def test_elsewhere(folder: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy, a relative path, and a plan that was pickled or changed."""
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "copy", "copy"):
        loaded(source, pickle.loads(pickle.dumps(plan)))
    assert loaded(folder, replace(plan, reason="changed by hand")).reason == "changed by hand"


def test_other_checkpoint(folder: Path, plan: Plan, tmp_path: Path) -> None:
    """Other tensors, or other values in the same ones: the error names both, and how to go on."""
    bert, tuned = TINY["bert"].save(tmp_path / "bert", torch.bfloat16), trained_on(folder, tmp_path / "tuned")
    for other, why in ((bert, "other tensors"), (tuned, "other values in its files")):
        with pytest.raises(StalePlanError) as caught:
            loaded(other, plan)
        text = str(caught.value)
        assert str(folder) in text
        assert f"{other} ({why})" in text
        assert "Next: make the plan again" in text
    assert loaded(tuned, replace(plan, made_for=None)).source == str(folder)


def test_changed_in_place(folder: Path, tmp_path: Path) -> None:
    """What is trained further, and saved in its own place, is another checkpoint."""
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    plan = plan_request(Request(place, {}))
    shutil.rmtree(place)
    trained_on(folder, place)
    with pytest.raises(StalePlanError, match="another checkpoint"):
        loaded(place, plan)


@pytest.mark.parametrize("name", ["NVIDIA Tesla T4", "NVIDIA H100"])
def test_prior_of_another_device(folder: Path, name: str) -> None:
    """A plan by priors, for a GPU that is not there."""
    plan = make_plan(prior_facts(name), read_checkpoint(folder))
    with pytest.raises(StalePlanError, match=f"another device: it is for .*{name[-3:].strip()}"):
        loaded(folder, plan, device_map="cpu")


def test_other_kernels(folder: Path, plan: Plan) -> None:
    """Other versions of torch, and other settings that change kernels."""
    made = plan.made_for
    assert made is not None
    older = replace(made, versions=(("torch", "2.6.0"),))
    with pytest.raises(StalePlanError, match=r"another version: it is for torch 2\.6\.0"):
        loaded(folder, replace(plan, made_for=older))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if before != "high" else "medium")
    try:
        with pytest.raises(StalePlanError, match="another setting: it is for float32_matmul_precision="):
            loaded(folder, plan)
    finally:
        torch.set_float32_matmul_precision(before)


def test_weights_in_memory(folder: Path, plan: Plan) -> None:
    """Weights that the caller passes are not compared."""
    weights = TINY["qwen3"].make().to(torch.bfloat16).state_dict()
    config = TINY["qwen3"].make().config
    config.architectures = ["Qwen3ForCausalLM"]
    assert loaded(None, plan, state_dict=weights, config=config) is plan


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[LoopbackHub]:
    """A Hub with the checkpoint."""
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        hub.push("org/model", {one.name: one.read_bytes() for one in folder.iterdir()})
        yield hub


def test_moved_main(hub: LoopbackHub, folder: Path, plan: Plan, tmp_path: Path) -> None:
    """A plan for a folder is one for the repository with the same files; where main moves to others it is stale."""
    assert loaded("org/model", plan) is plan
    from_hub = plan_request(Request("org/model", {}))
    assert from_hub.made_for is not None
    assert from_hub.made_for.checkpoint is not None
    (newest, _), *_ = hub.commits("org/model")
    assert from_hub.made_for.checkpoint.commit == newest
    hub.push("org/model", {"README.md": b"# Words\n"})
    loaded("org/model", from_hub)  # the Hub says that its weights are the same
    tuned = trained_on(folder, tmp_path / "tuned")
    hub.push("org/model", {"model.safetensors": (tuned / "model.safetensors").read_bytes()})
    with pytest.raises(StalePlanError, match=f"it is for org/model at {newest}, and .*other values in its files"):
        loaded("org/model", from_hub)
    assert loaded("org/model", from_hub, revision=newest) is from_hub


def test_no_plan(folder: Path) -> None:
    """What is no plan is refused with the next step."""
    with pytest.raises(TypeError, match=r"takes a Plan, not 'float16'.*dtype="):
        SafeAutoModel.from_pretrained(folder, plan="float16")
