"""The cache of a model is found by whatever name its version of transformers, or its architecture, has for it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarding.generators import IDS
from tiny_models import TINY
from transformers import DynamicCache, GenerationMixin

from safe_dtype.facts.cache_names import CACHE_NAMES, cache_in, cache_of, cache_parameter


def of_attention(states: Any, past_key_values: Any = None, cache: Any = None) -> None:
    """Take two caches, as a function of transformers before 5.24 may."""


def of_states(states: Any, *, cache_params: Any = None) -> None:
    """Take a cache as a Mamba does."""


def of_today(states: Any, cache: Any = None, use_cache: bool | None = None) -> None:
    """Take a cache as all do since 5.24."""


@pytest.mark.parametrize(
    ("function", "name"),
    [
        pytest.param(of_attention, "past_key_values", id="beside-another"),
        pytest.param(of_states, "cache_params", id="states"),
        pytest.param(of_today, "cache", id="today"),
        pytest.param(len, "past_key_values", id="none"),
    ],
)
def test_parameter(function: Callable[..., Any], name: str) -> None:
    """A function is told its cache by the name of its parameter."""
    assert cache_parameter(function) == name


@pytest.mark.parametrize("name", ["qwen3", "mamba"])
def test_models_take_it_without_a_warning(name: str) -> None:
    """The model that is installed takes its cache by that name, and it is found in what the model returns."""
    model, ids = TINY[name].make().eval(), TINY[name].inputs()["input_ids"]
    given = DynamicCache(config=model.config)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        output = model(input_ids=ids, use_cache=True, **{cache_parameter(model.forward): given})
    assert cache_of(output) is given


def test_what_prepares_inputs() -> None:
    """The arguments of a step are prepared with a cache by the name of the parameter there."""
    name = cache_parameter(GenerationMixin.prepare_inputs_for_generation)
    assert name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_among_arguments(name: str) -> None:
    """A cache is found under each of the names; an argument that is None is none."""
    cache = DynamicCache()
    assert cache_in({"input_ids": IDS, **dict.fromkeys(CACHE_NAMES), name: cache}) is cache
    assert cache_in({"input_ids": IDS, name: None}) is None


@pytest.mark.parametrize("output", [None, "text", torch.ones(1), (torch.ones(1),)], ids=repr)
def test_no_output_of_a_model(output: Any) -> None:
    """What is no output of a model has no cache."""
    assert cache_of(output) is None
