"""Whether a form can be used on this machine, and for these inputs."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pytest
import torch
from optimizing.recorded import EAGER, RECORD

from safe_dtype.optimizing.environment import environment
from safe_dtype.optimizing.nouns.job import Dynamic
from safe_dtype.optimizing.nouns.record import Batch, FormAttempt
from safe_dtype.optimizing.serving.compatibility import (
    dynamic_of,
    hidden_row,
    misfit,
    showing_masks,
    traced_inputs,
    unlike,
)

EXPORTED = replace(EAGER, form="export")
NATIVE = replace(EAGER, form="aoti")


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        pytest.param({"x": (5, 16), "i": (5, 7)}, "", id="fits"),
        pytest.param({"x": (5, 16)}, "it takes x, i; the call has x", id="one-is-missing"),
        pytest.param({"x": (5, 16), "i": (3, 7)}, "x is a batch of 5, and i one of 3", id="torn-batch"),
        pytest.param({"x": (9, 16), "i": (9, 7)}, "dimension 0 of x is 9, and not 1..8", id="large-batch"),
        pytest.param({"x": (5, 16), "i": (5, 10)}, "dimension 1 of i is 10, and not 4..9", id="long"),
        pytest.param({"x": (5, 15), "i": (5, 7)}, "dimension 1 of x is 15, and not 16", id="fixed"),
        pytest.param({"x": (5, 4, 4), "i": (5, 7)}, "x has 3 dimensions, and not 2", id="dimensions"),
    ],
)
def test_fitting_inputs(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    """A form takes the inputs that it was traced with, in sizes within its ranges."""
    traced = {"x": {"shape": [2, 16], "dtype": "float32"}, "i": {"shape": [2, 5], "dtype": "int64"}}
    dtypes = {"x": torch.bfloat16, "i": torch.int64}
    tensors = {name: torch.zeros(shape, dtype=dtypes[name]) for name, shape in shapes.items()}
    assert unlike(tensors, traced, Dynamic((1, 8), {"i": {1: (4, 9)}})) == reason


@pytest.mark.parametrize(
    ("attempt", "device", "made_in", "reason"),
    [
        pytest.param(EAGER, "cuda", {"packages": {"torch": "1.0"}}, "", id="eager-runs-everywhere"),
        pytest.param(EXPORTED, "cpu", {"packages": {"torch": version("torch")}}, "", id="same-torch"),
        pytest.param(EXPORTED, "cpu", {}, "", id="unrecorded"),
        pytest.param(EXPORTED, "cuda", {}, "it was made for cpu, and is to run on cuda", id="other-device"),
        pytest.param(EXPORTED, "cpu:1", {}, "it was made for cpu, and is to run on cpu:1", id="other-of-a-kind"),
        pytest.param(
            EXPORTED, "cpu", {"packages": {"torch": "1.0"}},
            f"it was made with torch 1.0, here is {version('torch')}", id="other-torch",
        ),
        pytest.param(EXPORTED, "cpu", {"platform": {"machine": "m68k"}}, "", id="a-program-is-for-every-machine"),
        pytest.param(
            replace(EAGER, form="nothing"), "cpu", {}, "no package that is installed here brings this form", id="form",
        ),
    ],
)  # fmt: skip
def test_machine(attempt: FormAttempt, device: str, made_in: dict[str, Any], reason: str) -> None:
    """A form is used where it was made for this device, this torch and, where that matters, this machine."""
    assert misfit(replace(RECORD, environment=made_in), attempt, device) == reason


def test_other_machine() -> None:
    """Native code is for one architecture, whatever else fits."""
    here = environment()
    made_in = {**here, "platform": {**here["platform"], "machine": "m68k"}}
    reason = misfit(replace(RECORD, environment=made_in), NATIVE, "cpu")
    assert reason == f"it was made with the architecture m68k, here is {here['platform']['machine']}"


def test_what_the_record_says() -> None:
    """The traced inputs and the ranges are read off the record, dimensions as numbers."""
    assert traced_inputs(RECORD) == {"input_ids": {"shape": [2, 9], "dtype": "int64"}}
    assert dynamic_of(RECORD) == Dynamic((1, 32), {"input_ids": {1: (2, 64)}})
    bare = replace(RECORD, batches=(), dynamic={})
    assert traced_inputs(bare) == {}
    assert dynamic_of(bare) == Dynamic()


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"i": torch.zeros(2, 5)}, "i is float32, and not int64"),
        ({"i": torch.zeros(2, 5, dtype=torch.int32)}, "i is int32, and not int64"),
        ({"i": [1, 2]}, "i is no tensor"),
    ],
)
def test_other_type(inputs: dict[str, Any], reason: str) -> None:
    """Integers are of the traced dtype, and inputs are tensors; without a record of them, nothing is refused."""
    assert unlike(inputs, {"i": {"shape": [2, 5], "dtype": "int64"}}, Dynamic()) == reason
    assert unlike(inputs, {}, Dynamic()) == ""


def test_masks_that_show_something() -> None:
    """They hid no row whole in any batch; flags of zeros, and masks that an old record says nothing of, are not theirs."""
    facts = {"attention_mask": False, "decoder_attention_mask": False, "global_attention_mask": True}
    traced = Batch("traced", "a", {name: {"hides_a_row": hides} for name, hides in facts.items()} | {"old_mask": {}})
    other = Batch("held out", "b", {"decoder_attention_mask": {"hides_a_row": True}})
    assert showing_masks(replace(RECORD, batches=(traced, other))) == {"attention_mask"}
    assert showing_masks(RECORD) == frozenset()


def test_hidden_row() -> None:
    """The call that hides a row whole is told apart, by a mask that hid none before."""
    mask = torch.tensor([[1, 0], [0, 0]])
    showing = frozenset({"attention_mask"})
    assert hidden_row({"attention_mask": mask}, showing) == "a row of attention_mask hides everything"
    assert hidden_row({"attention_mask": mask[:1], "global_attention_mask": mask}, showing) == ""
    assert hidden_row({"attention_mask": [[0]]}, showing) == ""
