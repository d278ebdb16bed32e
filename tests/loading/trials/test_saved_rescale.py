"""A rescue that was saved beside the weights is in force again after loading, and nothing is measured for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from engineered import KINDS, engineered, prompts, saved
from factories import TURING, checkpoint, rescued
from publishing.client import connect
from publishing.loopback import LoopbackHub, status
from torch import Tensor

from safe_dtype import SafeAutoModel, SafeDtypeWarning, patched, plan_of, report
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, HalfRange
from safe_dtype.loading import Request
from safe_dtype.loading.trials.saved_rescale import with_stored
from safe_dtype.models.islands import islands_in
from safe_dtype.planning import Policy, make_plan
from safe_dtype.rescaling import rescaled_of
from safe_dtype.rescaling.folding.rescale_file import FILE, Stored, is_noted, write_stored
from safe_dtype.testing import fault

MEASURING = "measuring whether float16 holds"
FAMILIES = ["llama", "gemma3", "opt_interior"]  # moves of weights and of eps; hooks; an island


@dataclass(frozen=True)
class Rescue:
    """An engineered model that was rescued from bfloat16, and the folders that it was saved in."""

    family: str
    first: Any
    original: Path
    bfloat16: Path  # as `save_pretrained` writes it
    float16: Path  # the same weights rounded to float16, as `publish stage` writes them


@pytest.fixture(scope="module", params=FAMILIES)
def rescue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rescue:
    """Return a family in every way that it can be saved."""
    return made(str(request.param), tmp_path_factory.mktemp(str(request.param)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Rescue:
    """Return a Llama whose residual stream leaves float16's range."""
    return made("llama", tmp_path_factory.mktemp("one"))


@pytest.fixture
def folder(llama: Rescue, tmp_path: Path) -> Path:
    """Return a copy of its folder in float16, to be spoilt."""
    return Path(shutil.copytree(llama.float16, tmp_path / "copy"))


def made(family: str, folder: Path) -> Rescue:
    """Rescue a family, and save it."""
    first = load(saved(family, folder / "original"))
    first.save_pretrained(folder / "bfloat16")
    # Of a checkpoint in bfloat16 plain transformers rounds what lies below 2**-14 when it makes float16 of it.
    plain = KINDS[family].auto.from_pretrained(folder / "original", dtype=torch.float16)
    plain.save_pretrained(folder / "float16")
    plan = plan_of(first)
    write_stored(Stored(plan.rescale, plan.islands, plan.policy.max_drift), folder / "float16")
    return Rescue(family, first, folder / "original", folder / "bfloat16", folder / "float16")


def load(folder: Path, **given: Any) -> Any:
    """Order float16."""
    return SafeAutoModel.from_pretrained(folder, **{"dtype": "float16"} | given)


def logits(model: Any, family: str = "llama") -> Tensor:
    """Return the logits of a prompt that makes the family overflow, in float32."""
    with torch.inference_mode():
        found: Tensor = model(**prompts(family, count=1, tokens=24, seed=3)[0]).logits
    return found.float()


def rewritten(folder: Path, edit: Callable[[Any], Any]) -> Path:
    """Change what is stored in `folder`."""
    found = edit(json.loads((folder / FILE).read_text()))
    (folder / FILE).write_text(json.dumps(found))
    return folder


def assert_as_without(folder: Path) -> None:
    """Assert that weights in float16 are loaded as they are, and that the guard stands by."""
    model = load(folder)
    assert (model.dtype, plan_of(model).rescale, rescaled_of(model)) == (torch.float16, None, None)
    assert not list(islands_in(model))
    plain = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    assert all(torch.equal(one, model.get_parameter(name)) for name, one in plain.named_parameters())
    torch.testing.assert_close(logits(model), logits(engineered("llama")), rtol=0, atol=0.05)
    # It overflows, and the guard finds out by itself what holds.
    assert [event.remedy for event in report(model).events] == ["an exact rescaling"]


# What comes back


def test_round_trip(rescue: Rescue, caplog: pytest.LogCaptureFixture) -> None:
    """Saved and loaded again in float16 it has the same rescale and islands, and says the same, bit for bit."""
    caplog.clear()
    second = load(rescue.bfloat16)
    first, again = plan_of(rescue.first), plan_of(second)
    assert again.stored
    assert (again.storage, again.rescale, again.islands) == (first.storage, first.rescale, first.islands)
    assert torch.equal(logits(second, rescue.family), logits(rescue.first, rescue.family))
    assert not any(MEASURING in one.message for one in caplog.records)
    assert report(second).events == ()
    assert "as it was saved" in again.explain(width=400)


def test_weights_in_float16(rescue: Rescue, caplog: pytest.LogCaptureFixture) -> None:
    """Files in float16 are rescued as those in bfloat16 are: the model stays in float16, and near to float32."""
    caplog.clear()
    model = load(rescue.float16)
    assert plan_of(model).stored
    assert torch.float16 in {one.dtype for one in model.parameters()}
    truth, found = logits(engineered(rescue.family), rescue.family), logits(model, rescue.family)
    kl = (truth.softmax(-1) * (truth.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
    assert float(kl.mean()) < 2e-3
    assert report(model).events == ()
    assert not any(MEASURING in one.message for one in caplog.records)


def test_left_in_the_dtype_of_the_files(llama: Rescue) -> None:
    """Without an order, and where the plan is float32, nothing is rescaled: the weights are as they were made."""
    model = load(llama.bfloat16, dtype="float32")
    assert (plan_of(model).rescale, plan_of(model).stored, rescaled_of(model)) == (None, False, None)
    assert torch.equal(logits(model), logits(engineered("llama")))


def test_where_it_is_patched(llama: Rescue) -> None:
    """A program written for plain transformers loads the files in float16, and gets the rescaled model."""
    with patched():
        model = tf.AutoModelForCausalLM.from_pretrained(llama.float16, dtype=torch.float16)
    assert torch.equal(logits(model), logits(load(llama.float16)))
    assert report(model).events == ()


def test_saved_once_more(llama: Rescue, tmp_path: Path) -> None:
    """What was loaded from float16 is saved in float16, every bit as it came, with the rescue beside it."""
    load(llama.float16).save_pretrained(tmp_path)
    first, second = (tf.AutoModelForCausalLM.from_pretrained(one, dtype="auto") for one in (llama.float16, tmp_path))
    assert second.dtype == torch.float16
    assert all(torch.equal(one, second.get_parameter(name)) for name, one in first.named_parameters())
    assert json.loads((tmp_path / FILE).read_text()) == json.loads((llama.float16 / FILE).read_text())
    assert is_noted(json.loads((tmp_path / "config.json").read_text()))


def test_stepping_down(llama: Rescue) -> None:
    """A step that fails in float16 goes on in float32 with the weights of the files, not with those scaled down."""
    model = load(llama.float16)
    going_on = pytest.warns(SafeDtypeWarning, match="Going on in float32")
    with fault(model, "model.layers.0.mlp.down_proj", "cublas", dtype=FLOAT16), going_on:
        found = logits(model)
    assert model.dtype == torch.float32
    wanted = tf.AutoModelForCausalLM.from_pretrained(llama.float16, dtype=torch.float32)
    assert torch.equal(found, logits(wanted))


@pytest.mark.parametrize("saved_in", [FLOAT16, BFLOAT16, FLOAT32], ids=str)
def test_planned(saved_in: Dtype) -> None:
    """On a card that is fast in float16 alone it is the plan, with the rescue, without an order or a drift."""
    stored = HalfRange(0.0, 0.0, rescale=rescued().rescale, islands=("model.layers.3.mlp",), stored=True)
    plan = make_plan(TURING, checkpoint(saved_in, half=stored))
    assert (plan.storage, plan.stored, plan.rescale, plan.islands) == (FLOAT16, True, stored.rescale, stored.islands)
    assert plan.chosen is not None
    assert (
        "rounds the weights; rescaled exactly: residual 2^-6, 1 module in float32, as it was saved"
        in plan.chosen.reason
    )


# What is left aside


BROKEN = {
    "schema": lambda found: {**found, "schema": "safe_dtype.rescale/9"},
    "a list": lambda found: [found],
    "too many bits": lambda found: _with_bits(found, 15),
    "no target": lambda found: _with_move(found, target=7),
    "rows of nothing": lambda found: _with_move(found, rows={"dim": "x", "start": 0, "stop": 1}),
    "too large a power": lambda found: _with_move(found, power=500),
    "islands": lambda found: {**found, "islands": "model"},
    "the variant's own file": lambda _: {"schema": "safe_dtype.variant/1", "rescale": {"folded": True}},
}


def _with_bits(found: Any, bits: int) -> Any:
    found["rescale"]["shifts"][0]["bits"] = bits
    return found


def _with_move(found: Any, **changes: Any) -> Any:
    found["rescale"]["shifts"][0]["moves"][0] |= changes
    return found


@pytest.mark.parametrize("edit", BROKEN.values(), ids=BROKEN)
def test_damaged(folder: Path, edit: Callable[[Any], Any]) -> None:
    """A file that cannot be read is left aside when it is planned, with a warning that names it."""
    facts = with_stored(checkpoint(FLOAT16), Request(rewritten(folder, edit), {}), None, rounds=True)
    assert facts.half is None
    assert f"{FILE} cannot be read and is not used" in facts.warnings[-1]


def test_no_json(folder: Path) -> None:
    """Then the model is loaded as it would be without the file."""
    (folder / FILE).write_bytes(b"\xff[")
    with pytest.warns(SafeDtypeWarning, match=f"{FILE} cannot be read and is not used"):
        assert_as_without(folder)


def _without_eps(found: Any) -> Any:
    for shift in found["rescale"]["shifts"]:
        shift["moves"] = [one for one in shift["moves"] if one["part"] != "number"]
    return found


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        pytest.param(_without_eps, "the results differ by", id="eps-left-out"),
        pytest.param(
            lambda found: _with_move(found, target="model.nowhere.weight"), "has no model.nowhere", id="else"
        ),
        pytest.param(lambda found: {**found, "islands": ["model.nowhere"]}, "no module model.nowhere", id="island"),
        pytest.param(
            lambda found: {**found, "rescale": found["rescale"] | {"unproven": ["model.tower"]}},
            "no module model.tower",
            id="tower",
            marks=pytest.mark.filterwarnings("ignore:.*which does not reach model.tower"),
        ),
    ],
)
def test_proven_on_the_model(folder: Path, edit: Callable[[Any], Any], said: str) -> None:
    """What does not hold for the model is left aside with the reason, and the weights are loaded as without it."""
    with pytest.warns(SafeDtypeWarning, match=f"does not hold for this model: .*{said}"):
        assert_as_without(rewritten(folder, edit))


def test_measured_instead(llama: Rescue, tmp_path: Path) -> None:
    """Where files in bfloat16 lie beside what does not hold, an order for float16 is measured as without it."""
    copy = rewritten(Path(shutil.copytree(llama.bfloat16, tmp_path / "copy")), _without_eps)
    with pytest.warns(SafeDtypeWarning, match="It is not used"):
        model = load(copy)
    assert (plan_of(model).stored, plan_of(model).rescale) == (False, plan_of(llama.first).rescale)
    assert torch.equal(logits(model), logits(llama.first))


@pytest.mark.parametrize("limit", [None, 0.5])
def test_drift_that_the_policy_does_not_allow(folder: Path, limit: float | None) -> None:
    """What was measured to be beyond its limit, or within a wider one than the policy's, is not used."""
    request = Request(rewritten(folder, lambda found: {**found, "max_drift": limit}), {})
    assert with_stored(checkpoint(FLOAT16), request, None, rounds=True).half is None
    generous = with_stored(checkpoint(FLOAT16), request, Policy(max_drift=0.5), rounds=True).half
    assert (generous is None) is (limit is None)


def test_without_a_note(folder: Path) -> None:
    """The file counts only where config.json names it: one that was left from another model is not looked at."""
    config = json.loads((folder / "config.json").read_text())
    del config["safe_dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert with_stored(checkpoint(FLOAT16), Request(folder, {}), None, rounds=True) == checkpoint(FLOAT16)


@pytest.mark.parametrize(
    ("facts", "given", "policy", "rounds"),
    [
        pytest.param({}, {}, Policy(mode="strict"), True, id="strict"),
        pytest.param({"saved": BFLOAT16}, {}, None, False, id="not-to-be-rounded"),
        pytest.param({"quantization": "awq"}, {}, None, True, id="quantized"),
        pytest.param({"adapter": "org/adapter"}, {}, None, True, id="adapter"),
        pytest.param({}, {"state_dict": {}}, None, True, id="other-weights"),
    ],
)
def test_not_looked_at(folder: Path, facts: Any, given: Any, policy: Policy | None, rounds: bool) -> None:
    """Nothing is rescued in strict mode, unasked where it would round, or where the weights are not those of the files."""
    found = replace(checkpoint(FLOAT16), **facts)
    assert with_stored(found, Request(folder, given), policy, rounds=rounds) == found


# On the Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub with a rescued model, of which the weights are not asked for, and a plain one."""
    (tmp_path / "config.json").write_text("{}")
    write_stored(Stored(rescued().rescale, ("model.layers.3.mlp",), 0.02), tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("config.json", FILE)}
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        hub.push("org/rescued", files)
        hub.push("org/plain", {"config.json": b"{}", FILE: files[FILE]})
        yield hub


def test_from_the_hub(hub: LoopbackHub) -> None:
    """The file is downloaded where config.json names it, and once."""
    request = Request("org/rescued", {})
    half = with_stored(checkpoint(FLOAT16), request, None, rounds=True).half
    assert half is not None
    assert (half.rescale, half.islands, half.stored) == (rescued().rescale, ("model.layers.3.mlp",), True)
    before = [(method, path) for method, path in hub.requests if method == "GET"]
    assert with_stored(checkpoint(FLOAT16), request, None, rounds=True).half == half
    assert [(method, path) for method, path in hub.requests if method == "GET"] == before


def test_nothing_is_asked_of_others(hub: LoopbackHub) -> None:
    """A repository whose config.json names no such file is not asked for it."""
    assert with_stored(checkpoint(FLOAT16), Request("org/plain", {}), None, rounds=True).half is None
    assert not any(FILE in path for _, path in hub.requests)


def test_a_hub_that_fails(hub: LoopbackHub) -> None:
    """An answer that does not come is a warning, and the checkpoint is planned without."""
    hub.fault("*", FILE, status(500), times=float("inf"))
    found = with_stored(checkpoint(FLOAT16), Request("org/rescued", {}), None, rounds=True)
    assert found.half is None
    assert f"{FILE} cannot be read and is not used" in found.warnings[-1]
