"""The blocks of a model are told by how its modules are nested, whatever they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engineered import engineered
from tiny_models import TINY
from torch import nn

from safe_dtype.models.blocks import block_names

BLOCKS = {
    "qwen3": ["model.layers.0", "model.layers.1"],
    "mixtral": ["model.layers.0", "model.layers.1"],  # and none of the experts inside
    "mamba": ["backbone.layers.0", "backbone.layers.1"],
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "t5": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "whisper": [f"model.{side}.layers.{place}" for side in ("encoder", "decoder") for place in (0, 1)],
}


@pytest.mark.parametrize("family", BLOCKS)
def test_blocks(family: str) -> None:
    """The outermost lists of modules are the stacks of blocks, each member with its full name."""
    with torch.device("meta"):
        model = TINY[family].make()
    assert list(block_names(model)) == BLOCKS[family]


def test_two_towers() -> None:
    """A model that reads images as well has the blocks of both towers."""
    with torch.device("meta"):
        found = list(block_names(TINY["llava"].make()))
    assert len(found) == 4
    assert sum("vision" in name for name in found) == 2


def test_order_is_that_of_the_modules() -> None:
    """Blocks come in the order in which they are numbered, beyond nine as well."""
    made = nn.ModuleDict({"layers": nn.ModuleList(block() for _ in range(12))})
    assert list(block_names(made)) == [f"layers.{number}" for number in range(12)]


def block() -> nn.Module:
    """Return a block: a module with matrices in it and modules around them."""
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


@pytest.mark.parametrize(
    ("make", "found"),
    [
        pytest.param(lambda: nn.ModuleList([nn.Linear(2, 2)]), [], id="a-lone-matrix-is-no-block"),
        pytest.param(lambda: nn.ModuleList([nn.Sequential(nn.LayerNorm(2))]), [], id="nor-is-a-norm"),
        pytest.param(lambda: nn.Sequential(block(), block()), [], id="nor-what-is-in-no-list"),
        pytest.param(lambda: nn.ModuleList([nn.ModuleList([block()]), block()]), ["m.0", "m.1"], id="outermost"),
        pytest.param(lambda: nn.ModuleList(), [], id="an-empty-list"),
    ],
)
def test_what_is_a_block(make: Callable[[], Any], found: list[str]) -> None:
    """A block has matrices, and modules of its own."""
    assert list(block_names(nn.ModuleDict({"m": make()}))) == found


def test_names_lead_to_modules() -> None:
    """Every name is one of `get_submodule`, also where a list begins with the name of another one."""
    made = nn.ModuleDict({"layers": nn.ModuleList([block()]), "layers_more": nn.ModuleList([block()])})
    assert list(block_names(made)) == ["layers.0", "layers_more.0"]
    model = engineered("gpt_oss")
    assert all(isinstance(model.get_submodule(name), nn.Module) for name in block_names(model))
    assert len(list(block_names(model))) == model.config.num_hidden_layers
