"""A Trainer in float16 goes on with scaled products, says so, and is resumed with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training.trainer_runs import Setting, difference, run

from safe_dtype.errors import StrictModeError
from safe_dtype.facts import FLOAT16, FLOAT32
from safe_dtype.training.half_products.trained_linear import products_scaled

NAMES = tuple(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down"))


def overflowing(model: Any) -> nn.Module:
    """Return the model with a frozen block whose inner product leaves the range of float16."""
    block = model.model.layers[1].mlp.requires_grad_(False)
    with torch.no_grad():
        block.gate_proj.weight *= 1e5
        block.up_proj.weight *= 1e5
        block.down_proj.weight *= 1e-9
    result: nn.Module = model
    return result


def scaled_for_good(model: Any) -> nn.Module:
    """Return such a model whose block scales its products from the beginning."""
    model = overflowing(model)
    model.in_force = products_scaled({model.get_submodule(name): lambda *_: None for name in NAMES})
    model.in_force.__enter__()
    result: nn.Module = model
    return result


@pytest.mark.needs("transformers>=5.23")  # older ones checkpoint all layers or none
@pytest.mark.parametrize(
    ("accumulation", "arguments"),
    [
        pytest.param(1, {}, id="plain"),
        pytest.param(2, {}, id="accumulation"),
        pytest.param(1, {"activation_checkpointing": True}, id="checkpointing"),
        pytest.param(
            1,
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            id="reentrant",
        ),
    ],
)
def test_as_scaled_by_hand(accumulation: int, arguments: dict[str, Any]) -> None:
    """Not a bit differs from the run whose products were scaled from its first step on."""
    common: dict[str, Any] = {"dtype": FLOAT16, "accumulation": accumulation, "arguments": arguments}
    ours = run(Setting(change=overflowing, **common))
    by_hand = run(Setting(change=scaled_for_good, attached=False, by_hand=(0, FLOAT16), **common))
    assert ours.error is by_hand.error is None
    assert difference(ours.everything(), by_hand.everything()) == ""
    assert {row["precision"] for row in ours.rows} == {"float16"}
    assert {row["rescaled_layers"] for row in ours.rows} == {3}
    assert {row["fallbacks"] for row in ours.rows} == {0}
    assert ours.rows[-1]["nonfinite_steps"] == 1


def test_resumed(tmp_path: Path) -> None:
    """The record names the layers, and a run that goes on from it repeats no failure."""
    common: dict[str, Any] = {
        "change": overflowing, "dtype": FLOAT16, "folder": str(tmp_path),
        "arguments": {"save_strategy": "steps", "save_steps": 3},
    }  # fmt: skip
    whole = run(Setting(**common))
    shutil.rmtree(tmp_path / "checkpoint-5")
    record = json.loads((tmp_path / "checkpoint-3" / "safe_dtype.json").read_text())
    assert (record["precision"], tuple(record["rescaled"])) == ("float16", NAMES)
    again = run(Setting(resume=True, **common))
    assert again.error is None
    for part in ("weights", "states", "losses", "norms", "random"):
        assert difference(again.everything()[part], whole.everything()[part]) == ""
    assert again.passes == 2


def test_strict() -> None:
    """Nothing is scaled: the step that is not finite ends the run."""
    ours = run(Setting(change=overflowing, dtype=FLOAT16, policy="strict"))
    assert isinstance(ours.error, StrictModeError)


def test_evaluation_in_between() -> None:
    """The model is itself between two windows: a copy of it made there computes as ever."""
    seen: list[type[nn.Module]] = []

    def watched(model: Any) -> nn.Module:
        model = overflowing(model)
        train = model.train

        def note(mode: bool = True) -> Any:
            seen.append(type(model.get_submodule(NAMES[0])))
            return train(mode)

        model.train = note
        result: nn.Module = model
        return result

    ours = run(Setting(change=watched, dtype=FLOAT16))
    assert ours.error is None
    assert type(ours.trainer.model.get_submodule(NAMES[0])) is nn.Linear
    assert {row["precision"] for row in ours.rows} == {"float16"}


def test_lora() -> None:
    """The base of 16 bits overflows between its layers: with the adapters of the block it is scaled."""
    peft = pytest.importorskip("peft")

    def adapted(model: Any) -> nn.Module:
        config = peft.LoraConfig(
            r=4, target_modules=["gate_proj", "up_proj", "down_proj"], init_lora_weights="gaussian"
        )
        result: nn.Module = peft.get_peft_model(overflowing(model).to(torch.bfloat16), config)
        return result

    ours = run(Setting(change=adapted, dtype=FLOAT16))
    assert ours.error is None
    assert {row["precision"] for row in ours.rows} == {"float16"}
    assert ours.rows[0]["rescaled_layers"] >= 3
    exact = run(Setting(change=adapted, dtype=FLOAT32))
    assert [row["loss"] for row in ours.rows] == pytest.approx([row["loss"] for row in exact.rows], rel=1e-2)
