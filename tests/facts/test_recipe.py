"""A recipe is data of somebody else: what is not exactly one is refused, whatever it holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from factories import drift

from safe_dtype.facts import CheckpointIdentity, Gauge, Move, Part, Rescale, Rows
from safe_dtype.facts.recipe import MOST_BYTES, Recipe, recipe_keys, recipe_path

KEY = "0123456789abcdef" * 4
OTHER = "f" * 64
MOVES = (
    Move(Part.WEIGHT, "model.layers.0.mlp.down_proj.weight", -1, Rows(-2, 0.0, 0.5, 1, 2)),
    Move(Part.NUMBER, "model.norm.eps", -2),
)
RECIPE = Recipe(
    (KEY,), Rescale(((Gauge("residual", MOVES), 8),), ("model.visual",)), ("model.layers.3.mlp",), drift(1e-5), 0.02, "float32",
    {"device": "Tesla T4", "torch": "2.13.0"},
)  # fmt: skip


def plain() -> dict[str, Any]:
    """Return the recipe as it comes from a file."""
    values: dict[str, Any] = json.loads(json.dumps(RECIPE.to_dict()))
    return values


def test_it_comes_back() -> None:
    """What was written is read."""
    assert Recipe.from_dict(plain(), KEY) == RECIPE


def test_a_figure_without_end() -> None:
    """JSON has no infinity (of a perplexity, say): it is written as a text, and comes back."""
    endless = replace(RECIPE, drift=replace(drift(1e-5), perplexity_ratio=math.inf))
    text = json.dumps(endless.to_dict(), allow_nan=False)
    assert Recipe.from_dict(json.loads(text), KEY) == endless


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """Return the recipe with one value changed."""
    values: Any = plain()
    inner = values
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    return values  # type: ignore[no-any-return]


SHIFT = ("rescale", "shifts", 0)
MOVE = (*SHIFT, "moves", 0)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="a-list"),
        pytest.param({}, id="empty"),
        pytest.param(None, id="null"),
        pytest.param(changed("schema", to="safe_dtype.recipe/2"), id="another-schema"),
        pytest.param({**plain(), "__reduce__": "os.system"}, id="unknown-key"),
        pytest.param(changed("weights", to=[OTHER]), id="other-weights"),
        pytest.param(changed("weights", to=KEY), id="weights-a-text"),
        pytest.param(changed("weights", to=[KEY] * 3), id="many-weights"),
        pytest.param(changed("weights", to=[KEY, "../../etc/passwd"]), id="a-path-for-a-digest"),
        pytest.param(changed(*SHIFT, "bits", to=11), id="more-bits-than-room-needs"),
        pytest.param(changed(*SHIFT, "bits", to=-1), id="what-makes-larger"),
        pytest.param(changed(*SHIFT, "bits", to=10**400), id="bits-beyond-everything"),
        pytest.param(changed(*SHIFT, "bits", to=True), id="bits-a-bool"),
        pytest.param(changed(*SHIFT, "bits", to=1.5), id="half-a-bit"),
        pytest.param(changed(*SHIFT, "moves", to=[]), id="no-moves"),
        pytest.param(
            changed(*SHIFT, "moves", to=plain()["rescale"]["shifts"][0]["moves"] * 10_001), id="too-many-moves"
        ),
        pytest.param(changed(*SHIFT, "gauge", to="x" * 121), id="long-name"),
        pytest.param(changed(*SHIFT, "gauge", to="\x1b[2Jx"), id="orders-to-a-terminal"),
        pytest.param(changed(*SHIFT, "gauge", to="mlp\u202etext"), id="turned-around"),
        pytest.param(changed("measured_on", to={"device": "T4\u200b"}), id="invisible"),
        pytest.param(changed(*MOVE, "target", to="__class__().__init__"), id="a-call"),
        pytest.param(changed(*MOVE, "target", to="a" * 301), id="long-target"),
        pytest.param(changed(*MOVE, "target", to="model..weight"), id="no-name"),
        pytest.param(changed(*MOVE, "target", to=7), id="a-number-for-a-name"),
        pytest.param(changed(*MOVE, "part", to="code"), id="another-part"),
        pytest.param(changed(*MOVE, "power", to=9), id="a-large-power"),
        pytest.param(changed(*MOVE, "rows", to={"dim": 0}), id="rows-that-are-none"),
        pytest.param(changed(*MOVE, "rows", "step", to=0), id="no-step"),
        pytest.param(changed(*MOVE, "rows", "stop", to=float("nan")), id="rows-to-nan"),
        pytest.param(changed(*MOVE, "rows", "dim", to=2**40), id="dim-beyond-everything"),
        pytest.param(changed("islands", to=["a b"]), id="island-with-a-space"),
        pytest.param(changed("islands", to=["a"] * 1001), id="too-many-islands"),
        pytest.param(changed("islands", to=["a", "a"]), id="an-island-twice"),
        pytest.param(changed("islands", to=["a.b.c", "a"]), id="an-island-in-another"),
        pytest.param(changed("rescale", "unproven", to=["<script>"]), id="markup"),
        pytest.param(changed("max_drift", to=float("inf")), id="no-limit"),
        pytest.param(changed("max_drift", to="0.02"), id="limit-a-text"),
        pytest.param(changed("drift", to={}), id="no-drift"),
        pytest.param(changed("measured_on", to={"device": "x" * 121}), id="long-device"),
        pytest.param({**plain(), "rescale": None, "islands": []}, id="changes-nothing"),
    ],
)
def test_what_is_none_is_refused(values: Any) -> None:
    """Each is an error of reading, none of them anything else."""
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError, OverflowError)):
        Recipe.from_dict(values, KEY)


def test_a_schema_of_tomorrow() -> None:
    """Who reads a newer recipe is told which one is read here."""
    with pytest.raises(
        ValueError, match=r"its schema is 'safe_dtype.recipe/2', and this version .* reads safe_dtype.recipe/1"
    ):
        Recipe.from_dict(changed("schema", to="safe_dtype.recipe/2"), KEY)


def test_it_says_nothing_secret() -> None:
    """Digests, moves, figures, a device and versions: no name of the model, no path, no text."""
    assert set(RECIPE.to_dict()) == {
        "schema", "weights", "rescale", "islands", "drift", "max_drift", "reference", "measured_on",
    }  # fmt: skip


def test_a_large_model_fits() -> None:
    """126 layers with a dozen moves each are far below what a reader takes."""
    moves = tuple(
        Move(Part.WEIGHT, f"model.language_model.layers.{layer}.mlp.experts.down_proj.{number}", -1, MOVES[0].rows)
        for layer in range(126)
        for number in range(12)
    )
    large = Recipe((KEY,), Rescale(((Gauge("residual", moves), 8),)), (), drift(1e-5), 0.02, "float32", {})
    text = json.dumps(large.to_dict(), indent=1)
    assert len(text) < MOST_BYTES
    assert Recipe.from_dict(json.loads(text), KEY) == large


def test_weights_are_found_by_their_digests() -> None:
    """By what is known of them: files that are here, or what the Hub says; by names and shapes alone never."""
    assert recipe_keys(CheckpointIdentity("a" * 64, contents="b" * 64, blobs="c" * 64)) == ("b" * 64, "c" * 64)
    assert recipe_keys(CheckpointIdentity("a" * 64, blobs="c" * 64)) == ("c" * 64,)
    assert recipe_keys(CheckpointIdentity("a" * 64)) == recipe_keys(None) == ()
    assert recipe_path("ab" + "c" * 62) == f"recipes/ab/ab{'c' * 62}.json"


DRIFT = plain()["drift"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"kl_mean": None}, id="no-figure"),
        pytest.param({"kl_mean": -1.0}, id="below-zero"),
        pytest.param({"kl_p99": "nan"}, id="nan"),
        pytest.param({"kind": "\x1b[2J"}, id="another-kind"),
        pytest.param({"positions": -5}, id="positions-below-zero"),
        pytest.param({"positions": 10**30}, id="positions-without-end"),
        pytest.param({"hidden_cosine": 7.0}, id="a-cosine-of-seven"),
        pytest.param({"heads": {"\x1b[2J": DRIFT}}, id="orders-to-a-terminal"),
        pytest.param({"heads": {"boxes": {**DRIFT, "heads": {"inner": DRIFT}}}}, id="heads-in-heads"),
        pytest.param({"heads": {str(place): DRIFT for place in range(101)}}, id="many-heads"),
        pytest.param({"heads": {"boxes": {**DRIFT, "kl_mean": None}}}, id="a-head-without-a-figure"),
    ],
)
def test_a_drift_that_is_none(change: dict[str, Any]) -> None:
    """A drift is held to the limit and printed, so each of its figures is one."""
    with pytest.raises(ValueError, match=r"drift|outputs|is none"):
        Recipe.from_dict({**plain(), "drift": {**DRIFT, **change}}, KEY)


def test_a_second_name() -> None:
    """A gauge without a name does not get one that nobody looked at."""
    shift = {**plain()["rescale"]["shifts"][0], "gauge": "", "name": "\x1b[2J"}
    with pytest.raises(ValueError, match="has no name"):
        Recipe.from_dict(changed("rescale", "shifts", to=[shift]), KEY)
