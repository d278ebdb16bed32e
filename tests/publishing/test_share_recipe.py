"""A rescue is shared as a recipe, and whoever has the same weights loads with it: proved, and nothing measured."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from engineered import engineered, prompts, saved
from huggingface_hub import HfApi, constants
from mini_hub import MiniHub
from publishing.client import connect
from publishing.loopback import LoopbackHub, status

from safe_dtype import SafeAutoModel, SafeAutoModelForCausalLM, SafeDtypeWarning, plan_of
from safe_dtype.cli import cli
from safe_dtype.errors import PublishError
from safe_dtype.facts import Rescale
from safe_dtype.facts.recipe import MOST_BYTES, recipe_keys, recipe_path
from safe_dtype.hub.client import Hub, HubPatience
from safe_dtype.loading import Request, checkpoint_for
from safe_dtype.publishing.share_recipe import share_recipe
from safe_dtype.rescaling import gauges_for

RECIPES = "org/recipes"
MEASURING = "measuring whether float16 holds"
POLICY = f"ladder=fp16>fp32,recipes={RECIPES}"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that overflows float16, and needs a rescale for it."""
    return saved("gemma3", tmp_path_factory.mktemp("gemma3") / "model")


@pytest.fixture(scope="module")
def shared(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """Return what a repository of recipes holds after `safe-dtype rescue --share`."""
    with pytest.MonkeyPatch.context() as patch, LoopbackHub() as hub:
        connect(patch, hub, tmp_path_factory.mktemp("client"))
        patch.setenv("SAFE_DTYPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        command = ["rescue", str(gemma), "--share", RECIPES, "--format", "json"]
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 0
        told = json.loads(result.stdout)["shared"]
        assert told["private"] is True  # a new repository is nobody else's until its owner says so
        assert told["commit"] == hub.repositories[RECIPES].head("main")
        again = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)["shared"]
        assert again == told  # what is there already is not committed again
        yield hub.files(RECIPES)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered: as on the machine of somebody else."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mini(shared: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh: None) -> Iterator[MiniHub]:
    """A Hub that has the recipes, and a folder of them to be spoilt."""
    for path, content in shared.items():
        (tmp_path / "recipes" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "recipes" / path).write_bytes(content)
    with MiniHub({RECIPES: tmp_path / "recipes"}).running() as hub:
        connect(monkeypatch, hub, tmp_path / "client")
        yield hub


def recipe_in(hub: MiniHub) -> Path:
    """Return the file of the recipe."""
    return next((hub.repositories[RECIPES] / "recipes").rglob("*.json"))


def test_what_is_shared(shared: dict[str, bytes], gemma: Path) -> None:
    """A card, and the recipe by the digest of the weights: no path, no name of the model, nothing of the text."""
    assert sorted(path.partition("/")[0] for path in shared) == [".gitattributes", "README.md", "recipes"]
    text = next(content for path, content in shared.items() if path.endswith(".json")).decode()
    values = json.loads(text)
    assert values["rescale"]["shifts"][0]["gauge"] == "residual"
    assert values["drift"]["kl_mean"] < 0.02
    for secret in (str(gemma), "gemma", str(Path.home()), "Marta", "hf_"):
        assert secret not in text


def test_the_next_load_measures_nothing(mini: MiniHub, gemma: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Found by the weights' digest, in one request; rescaled, proved, and as near to float32 as measured."""
    model = SafeAutoModel.from_pretrained(gemma, policy=POLICY)
    plan = plan_of(model)
    assert model.dtype == torch.float16
    assert plan.rescale is not None
    assert plan.recipe.startswith(f"{RECIPES}@")
    assert plan.recipe in plan.explain()
    assert MEASURING not in caplog.text
    assert len([request for request in mini.requests if "/recipes/" in request]) == 1
    full = SafeAutoModel.from_pretrained(gemma, dtype="float32")
    tokens = prompts("gemma3", count=1, tokens=16, seed=0)[0]["input_ids"]
    with torch.no_grad():
        assert (model(tokens).logits.float() - full(tokens).logits).abs().max() < 1


@pytest.mark.slow
def test_a_copy_under_another_name(mini: MiniHub, gemma: Path, tmp_path: Path) -> None:
    """The same weights elsewhere are the same weights."""
    copy = tmp_path / "another name"
    shutil.copytree(gemma, copy)
    assert plan_of(SafeAutoModel.from_pretrained(copy, policy=POLICY)).recipe


def spoil(values: dict[str, Any], how: str, folder: Path) -> dict[str, Any]:
    """Return a recipe that is well formed, and not right for these weights."""
    shift = values["rescale"]["shifts"][0]
    if how == "not exact":
        shift["moves"] = shift["moves"][1:]
    elif how == "no module of that name":
        shift["moves"][0]["target"] = "model.nowhere.weight"
    elif how == "rows that no weight has":
        shift["moves"][0] |= {"part": "weight", "target": "model.embed_tokens.weight"}
        shift["moves"][0]["rows"] = {"dim": 7, "start": 0.0, "stop": 1.0, "offset": 2**30, "step": 3}
    elif how == "what is no module":
        shift["moves"][0] |= {"part": "number", "target": "model.layers.0.__class__.__name__"}
    elif how == "the row of one token, that no text reads":
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        row = {"dim": 0, "start": (rows - 1) / rows, "stop": 1.0, "offset": 0, "step": 1}
        move = {"part": "weight", "target": "model.embed_tokens.weight", "power": 1, "rows": row}
        values["rescale"]["shifts"].append({"gauge": "embedding", "bits": 1, "moves": [move]})
    elif how == "twice":
        values["rescale"]["shifts"].append(shift)
    elif how == "a text reaches what it says none does":
        values["rescale"]["unproven"] = ["model.layers.0"]
    elif how == "exact and useless":
        shift["bits"] = 0
        values["islands"] = ["model.layers.0.mlp"]
    return values


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("not exact", marks=pytest.mark.slow),
        pytest.param("no module of that name", marks=pytest.mark.slow),
        pytest.param("rows that no weight has", marks=pytest.mark.slow),
        pytest.param("what is no module", marks=pytest.mark.slow),
        "the row of one token, that no text reads",
        pytest.param("twice", marks=pytest.mark.slow),
        pytest.param("a text reaches what it says none does", marks=pytest.mark.slow),
        pytest.param("exact and useless", marks=pytest.mark.slow),
    ],
)
def test_what_does_not_prove_is_refused(
    mini: MiniHub, gemma: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says so, and the normal way is taken: it is measured, and right."""
    file = recipe_in(mini)
    file.write_text(json.dumps(spoil(json.loads(file.read_text()), how, gemma)))
    with pytest.warns(SafeDtypeWarning, match="does not hold for this model"):
        model = SafeAutoModel.from_pretrained(gemma, policy=POLICY)
    assert MEASURING in caplog.text
    assert plan_of(model).recipe == ""
    assert plan_of(model).rescale is not None
    assert model(**prompts("gemma3", count=1, tokens=16, seed=0)[0]).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "is_taken"), [(6, True), (10, False)])
def test_a_weight_that_loses_too_much(
    mini: MiniHub, tmp_path: Path, bits: int, *, is_taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Bits that others may need are too many for small weights: the first that loses more than bfloat16 rounds is named."""
    small = engineered("llama")
    with torch.no_grad():
        for layer in small.model.layers:  # the same function, with what is moved down small already
            layer.self_attn.v_proj.weight.mul_(2.0**7)
            layer.self_attn.o_proj.weight.mul_(2.0**-7)
    small.to(torch.bfloat16).save_pretrained(folder := tmp_path / "small")
    gauges = {one.name: one for one in gauges_for(small).gauges}
    values = json.loads(recipe_in(mini).read_text())
    values["weights"] = [key := recipe_keys(checkpoint_for(Request(str(folder), {})).identity)[0]]
    values["rescale"] = Rescale(((gauges["residual"], bits), (gauges["mlp.up_proj / mlp.down_proj"], 2))).to_dict()
    file = mini.repositories[RECIPES] / recipe_path(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SafeDtypeWarning)
        model = SafeAutoModelForCausalLM.from_pretrained(folder, policy=POLICY)
    refused = [one for one in caught if "self_attn.o_proj.weight would lose 0.0" in str(one.message)]
    assert (len(refused), bool(plan_of(model).recipe)) == ((0, True) if is_taken else (1, False))
    assert (MEASURING in caplog.text) is not is_taken


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x04\x95cos\nsystem\n", id="a-pickle"),
        pytest.param(b'{"schema": "safe_dtype.recipe/1"}', id="half-a-recipe", marks=pytest.mark.slow),
        pytest.param(b"[" * 100_000, id="nested-without-end", marks=pytest.mark.slow),
        pytest.param(b"", id="nothing", marks=pytest.mark.slow),
    ],
)
def test_a_malicious_file(mini: MiniHub, gemma: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is no recipe is left aside with a warning; nothing of it is run."""
    recipe_in(mini).write_bytes(content)
    with pytest.warns(SafeDtypeWarning, match="is no recipe, and is not used"):
        model = SafeAutoModel.from_pretrained(gemma, policy=POLICY)
    assert MEASURING in caplog.text
    assert plan_of(model).recipe == ""


@pytest.mark.slow
def test_a_file_without_end(mini: MiniHub, gemma: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is larger than any recipe is not read to its end."""
    caplog.set_level("INFO", logger="safe_dtype")
    recipe_in(mini).write_bytes(b" " * (MOST_BYTES + 2))
    assert plan_of(SafeAutoModel.from_pretrained(gemma, policy=POLICY)).recipe == ""
    assert "no recipe of org/recipes" in caplog.text


def test_offline(
    mini: MiniHub, gemma: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Offline nobody is asked, and the load goes the normal way."""
    caplog.set_level("INFO", logger="safe_dtype")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert plan_of(SafeAutoModel.from_pretrained(gemma, policy=POLICY)).rescale is not None
    assert mini.requests == []
    assert "offline, so org/recipes is not asked" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["not there", "not for everybody", "out of order"])
def test_a_repository_that_cannot_be_read(
    mini: MiniHub, gemma: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong name is warned of, for it would never be noticed; a Hub that fails for now is not. It is measured all the same."""
    if how == "not there":
        mini.repositories.clear()
    mini.gated = frozenset([RECIPES] if how == "not for everybody" else [])
    mini.broken = frozenset([RECIPES] if how == "out of order" else [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SafeDtypeWarning)
        model = SafeAutoModel.from_pretrained(gemma, policy=POLICY)
    words = [str(one.message) for one in caught if "recipes=org/recipes: it cannot be read" in str(one.message)]
    assert len(words) == (how != "out of order")
    assert MEASURING in caplog.text
    assert plan_of(model).rescale is not None


def test_without_the_policy_nobody_is_asked(mini: MiniHub, gemma: Path) -> None:
    """Recipes are for who wants them."""
    SafeAutoModel.from_pretrained(gemma, policy="ladder=fp16>fp32")
    assert mini.requests == []


@pytest.mark.slow
def test_where_use_looks(mini: MiniHub, gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recipes=use` looks where the environment says, and says what is missing where it says nothing."""
    monkeypatch.delenv("SAFE_DTYPE_RECIPES", raising=False)
    with pytest.warns(SafeDtypeWarning, match="set SAFE_DTYPE_RECIPES=org/recipes"):
        SafeAutoModel.from_pretrained(gemma, policy="ladder=fp16>fp32,recipes=use")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(mini.repositories[RECIPES].parent / "another"))
    monkeypatch.setenv("SAFE_DTYPE_RECIPES", RECIPES)
    assert plan_of(SafeAutoModel.from_pretrained(gemma, policy="ladder=fp16>fp32,recipes=use")).recipe


def test_nothing_to_share(hub: LoopbackHub, tmp_path: Path, fresh: None) -> None:
    """A model that needs nothing, or is beyond the limit, has no recipe; nothing is made on the Hub."""
    tiny = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3"
    result = CliRunner().invoke(cli, ["rescue", str(tiny), "--share", RECIPES])
    assert result.exit_code == 1
    assert "there is nothing to share. Next: load it with dtype='float16'" in str(result.exception)
    assert RECIPES not in hub.repositories


def test_the_hub_says_no(hub: LoopbackHub, gemma: Path, shared: dict[str, bytes]) -> None:
    """A repository of others, and a Hub that fails: one error that says how things stand."""
    from safe_dtype.facts.recipe import Recipe

    path = next(path for path in shared if path.endswith(".json"))
    recipe = Recipe.from_dict(json.loads(shared[path]), Path(path).stem)
    api = Hub(HfApi(endpoint=hub.url, token=hub.token), HubPatience(waits=(0.01,), polls=(0.01,)))
    hub.push("somebody/recipes", {"a.txt": b"a"})
    with pytest.raises(PublishError, match="somebody/recipes"):
        share_recipe(recipe, "somebody/recipes", api=api)
    hub.push(RECIPES, {"a.txt": b"a"})
    hub.fault("*", RECIPES, status(500), times=99)
    with pytest.raises(PublishError) as caught:
        share_recipe(recipe, RECIPES, api=api)
    assert caught.value.state in ("not-started", "not-published")


@pytest.mark.slow
def test_weights_that_only_the_hub_has(
    hub: LoopbackHub, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who shares a repository shares it by the Hub's own digests too: they are known before anything is downloaded."""
    hub.push("org/model", {file.name: file.read_bytes() for file in gemma.iterdir()})
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "sharer"))
    result = CliRunner().invoke(cli, ["rescue", "org/model", "--share", RECIPES], catch_exceptions=False)
    assert result.exit_code == 0
    assert len([path for path in hub.files(RECIPES) if path.endswith(".json")]) == 2
    connect(monkeypatch, hub, tmp_path / "somebody else")
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "user"))
    caplog.clear()
    model = SafeAutoModel.from_pretrained("org/model", policy=POLICY)
    assert plan_of(model).recipe
    assert MEASURING not in caplog.text
