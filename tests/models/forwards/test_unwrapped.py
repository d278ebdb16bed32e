"""Transformers' own wrappers of forwards are looked into; those of others are not."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.deprecation import deprecate_kwarg

from safe_dtype.models.forwards.unwrapped import old_names, unwrapped, without_old_names


def twice(self: Any, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """Double."""
    return x * 2


renamed = deprecate_kwarg("past", "99.0.0", new_name="cache")(twice)
renamed_twice = deprecate_kwarg("older", "99.0.0", new_name="cache")(renamed)


class Layer(GradientCheckpointingLayer):
    """A layer of transformers, wrapped by its base and by a decorator."""

    forward = renamed


@functools.wraps(twice)
def somebody_elses(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap, and compute something else."""
    return twice(self, *args, **kwargs) + 1


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        pytest.param(twice, set(), id="none"),
        pytest.param(renamed, {"past"}, id="one"),
        pytest.param(renamed_twice, {"past", "older"}, id="two"),
        pytest.param(Layer.forward, {"past"}, id="in-a-layer"),
    ],
)
def test_wrappers_of_transformers(forward: Any, names: set[str]) -> None:
    """The function inside is found, and which names of arguments the wrappers replace."""
    assert unwrapped(forward) is twice
    assert old_names(forward) == names


def test_names_alone() -> None:
    """Of wrappers for names the function inside is found, however many there are."""
    assert without_old_names(renamed_twice) is twice


@pytest.mark.skipif(
    "__init_subclass__" not in vars(GradientCheckpointingLayer), reason="forwards of layers are not wrapped"
)
def test_layers_stay_wrapped() -> None:
    """The wrapper that computes activations anew is none for names: who goes on in training must not pass it."""
    assert without_old_names(Layer.forward) is Layer.forward


@pytest.mark.parametrize(
    "forward",
    [somebody_elses, len, None, nn.Linear.forward, functools.partial(twice)],
    ids=["somebody-elses", "built-in", "none", "of-torch", "partial"],
)
def test_others(forward: Any) -> None:
    """What is not wrapped by transformers is itself, also where it says that it wraps something."""
    assert unwrapped(forward) is forward
    assert without_old_names(forward) is forward
    assert not old_names(forward)


def test_an_old_name_is_the_wrappers() -> None:
    """A call with an old name is what the names are for: only the wrapper knows what it means."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        renamed(None, torch.ones(1), past=3)
    assert [one.category for one in caught] == [FutureWarning]
    with pytest.raises(TypeError):
        unwrapped(renamed)(None, torch.ones(1), past=3)
