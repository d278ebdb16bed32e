"""A recipe of somebody else is used however a model is loaded, and asked for only where it spares a measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engineered import prompts, saved
from mini_hub import MiniHub
from publishing.client import connect
from transformers import AutoModelForCausalLM

import safe_dtype
from safe_dtype import SafeAutoModelForCausalLM, plan_of
from safe_dtype.commands.rescue import rescue
from safe_dtype.commands.rescue_recipe import recipe_of
from safe_dtype.facts.recipe import recipe_path
from safe_dtype.loading import Request, plan_request
from safe_dtype.store import entries, remember

RECIPES = "org/recipes"
TINY = Path(__file__).resolve().parents[3] / "examples" / "tiny-qwen3"
MEASURING = "measuring whether float16 holds"
Load = Callable[[Path], Any]


def patched(folder: Path) -> Any:
    """Load in a program that knows nothing of safe_dtype."""
    with safe_dtype.patched(f"ladder=fp16>fp32,recipes={RECIPES}", tell="nothing"):
        return AutoModelForCausalLM.from_pretrained(folder)


def ordered(folder: Path, **arguments: Any) -> Any:
    """Load in float16, as the caller orders it."""
    return SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16", policy=f"recipes={RECIPES}", **arguments)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several files that overflows in float16, and whose head shares its weight with the embedding."""
    folder = saved("qwen3", tmp_path_factory.mktemp("qwen3") / "model", max_shard_size=200_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    return folder


@pytest.fixture(scope="module")
def measured(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the repository of the recipe, and what its author's machine remembers."""
    folder = tmp_path_factory.mktemp("of the author")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_DTYPE_CACHE", str(folder / "cache"))
        outcome = rescue(str(sharded), device="cpu", revision=None, text=None, max_drift=0.02)
        recipe = recipe_of(outcome, revision=None)
    file = folder / "recipes" / recipe_path(recipe.weights[0])
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(recipe.to_dict()))
    return folder / "recipes", folder / "cache"


@pytest.fixture
def hub(measured: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MiniHub]:
    """A Hub that has the recipe, asked from a machine that remembers nothing."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    with MiniHub({RECIPES: measured[0]}).running() as hub:
        connect(monkeypatch, hub, tmp_path / "client")
        yield hub


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:float16 was asked for")
@pytest.mark.parametrize(
    "load",
    [
        pytest.param(ordered, id="ordered"),
        pytest.param(lambda folder: ordered(folder, device_map="cpu"), id="one-device"),
        pytest.param(lambda folder: ordered(folder, device_map={"": "cpu"}), id="a-map"),
        pytest.param(lambda folder: ordered(folder, device_map="auto"), id="auto"),
        pytest.param(lambda folder: ordered(folder, tie_word_embeddings=True), id="tied-by-the-caller"),
        pytest.param(lambda folder: ordered(folder, attn_implementation="eager"), id="another-attention"),
        pytest.param(patched, id="patched"),
    ],
)
def test_however_it_is_loaded(hub: MiniHub, sharded: Path, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    """One question, nothing measured, rescaled, tied as before, and near what float32 gives."""
    model = load(sharded)
    assert plan_of(model).recipe.startswith(RECIPES)
    assert plan_of(model).rescale is not None
    assert MEASURING not in caplog.text
    assert len([request for request in hub.requests if "/recipes/" in request]) == 1
    assert model.dtype == torch.float16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    full = SafeAutoModelForCausalLM.from_pretrained(sharded, dtype="float32")
    tokens = prompts("qwen3", count=1, tokens=16, seed=0)[0]["input_ids"]
    with torch.no_grad():
        assert (model(tokens).logits.float() - full(tokens).logits).abs().max() < 0.5


def test_another_dtype_asks_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who orders bfloat16 needs no recipe, so nobody is asked."""
    with MiniHub({RECIPES: tmp_path}).running() as hub:
        connect(monkeypatch, hub, tmp_path / "client")
        model = SafeAutoModelForCausalLM.from_pretrained(TINY, dtype="bfloat16", policy=f"recipes={RECIPES}")
    assert model.dtype == torch.bfloat16
    assert hub.requests == []


@pytest.mark.slow  # as long as the measurement takes
def test_what_another_device_has_measured(
    hub: MiniHub, sharded: Path, measured: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How large activations become does not depend on the device: measured for any of them, nobody is asked."""
    with monkeypatch.context() as author:
        author.setenv("SAFE_DTYPE_CACHE", str(measured[1]))
        known = [entry for entry in entries() if "half_of" in entry.key]
    for entry in known:
        values = {
            name: value
            for name, value in entry.values.items()
            if name not in ("schema", "key", "measured_at", "digest")
        }
        remember({**entry.key, "device": "another device"}, values)
    plan = plan_request(Request(str(sharded), {"dtype": "float16"}), f"recipes={RECIPES}")
    assert plan.rescale is not None
    assert "measured on another device" in plan.explain()
    assert hub.requests == []
