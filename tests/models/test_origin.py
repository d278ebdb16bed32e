"""How a model was loaded is kept with it, well enough to read the same weights again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from publishing.client import connect
from publishing.loopback import LoopbackHub
from tiny_models import TINY

from safe_dtype import SafeAutoModel, plan_of
from safe_dtype.errors import NoPlanError
from safe_dtype.models.origin import origin_of
from safe_dtype.models.original_weights import OriginalWeights


def test_main_moves_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The weights of a repository are read again from the commit that was loaded."""
    folder = TINY["qwen3"].save(tmp_path / "model", torch.bfloat16)
    other = TINY["qwen3"].make()
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(2.0)
    other.to(torch.bfloat16).save_pretrained(tmp_path / "other")
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        commit = hub.push("org/model", {one.name: one.read_bytes() for one in folder.iterdir()})
        model = SafeAutoModel.from_pretrained("org/model", policy="prefer=memory")
        before = {name: tensor.float() for name, tensor in model.state_dict().items()}
        hub.push("org/model", {"model.safetensors": (tmp_path / "other" / "model.safetensors").read_bytes()})
        assert origin_of(model).arguments["revision"] == commit
        with OriginalWeights(model) as original:
            for name, tensor in before.items():
                stored = original.unchanged(name, model.get_parameter(name))
                assert stored is not None
                assert torch.equal(stored.float(), tensor)


def test_plan_of_a_stranger() -> None:
    """A model loaded otherwise has no plan, and the error says how to get one."""
    with pytest.raises(NoPlanError, match="SafeAutoModel"):
        plan_of(TINY["qwen3"].make())


def test_plan_follows_the_model(saved: Callable[..., Path]) -> None:
    """The plan survives deepcopy, is no part of the state dict, and stays behind in pickling."""
    model = SafeAutoModel.from_pretrained(saved("qwen3"), token="hf_secret_token")
    assert plan_of(copy.deepcopy(model)) == plan_of(model)
    with pytest.raises(NoPlanError):
        plan_of(pickle.loads(pickle.dumps(model)))
    assert not any("safe_dtype" in key for key in model.state_dict())
    assert "hf_secret_token" not in repr(origin_of(model))
    assert b"hf_secret_token" not in pickle.dumps(model)


def test_save_again(tmp_path: Path, saved: Callable[..., Path]) -> None:
    """A model loaded by us saves and loads again as any other."""
    model = SafeAutoModel.from_pretrained(saved("qwen3"), policy="prefer=memory")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
