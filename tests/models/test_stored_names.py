"""Under which names files hold what a model has, also where transformers renames, joins or splits it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import TINY
from torch import nn

from safe_dtype.models.stored_names import Source, plain_name, sources_of


def names_of(sources: list[Source]) -> list[tuple[str, ...]]:
    """Return what is read for each."""
    return [source.names for source in sources]


@pytest.mark.parametrize(
    ("stored", "own"),
    [("norm.weight", "model.norm.weight"), ("model.norm.weight", "model.norm.weight"), ("other.weight", None)],
)
def test_a_prefix_more_or_less(stored: str, own: str | None) -> None:
    """Weights of a model without a head are found in one with a head."""
    sources = sources_of(TINY["qwen3"].make(), [stored])
    assert [name for name, candidates in sources.items() if candidates] == ([own] if own else [])


def test_ties() -> None:
    """Of tied weights each may be made from what is stored for the other."""
    sources = sources_of(TINY["qwen3"].make(), ["lm_head.weight"])
    assert (
        names_of(sources["model.embed_tokens.weight"]) == names_of(sources["lm_head.weight"]) == [("lm_head.weight",)]
    )


def test_a_mapping_of_the_caller() -> None:
    """`key_mapping` renames here as it did on loading."""
    sources = sources_of(TINY["qwen3"].make(), ["transformer.norm.weight"], {"^transformer": "model"})
    assert names_of(sources["model.norm.weight"]) == [("transformer.norm.weight",)]


def test_joined_experts() -> None:
    """What a converter joins comes from all of its parts, in their order."""
    model: Any = TINY["mixtral"].make()
    stored = [
        f"model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight" for expert in (0, 1) for name in ("w1", "w2")
    ]
    sources = sources_of(model, stored)
    (source,) = sources["model.layers.0.mlp.experts.down_proj"]
    assert source.names == (stored[1], stored[3])
    assert source.conversion is not None
    made = source.conversion.convert(model, lambda name: torch.full((2, 3), float(stored.index(name))))
    assert made[source.target].flatten().unique().tolist() == [1.0, 3.0]


def test_a_plain_module() -> None:
    """A module of no class of transformers has its weights by their own names."""
    assert names_of(sources_of(nn.Linear(2, 2), ["weight"])["weight"]) == [("weight",)]


@pytest.mark.parametrize("name", ["a.b.weight", "a.b.base_layer.weight", "a.b.original_module.weight"])
def test_plain_name(name: str) -> None:
    """What PEFT puts into a name is taken out."""
    assert plain_name(name) == "a.b.weight"
