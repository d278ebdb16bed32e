"""What was written into moved weights is seen, and whether its size is the model's own; what only moved is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engineered import engineered
from rescaling.folding.changes import rescued, writers
from torch import nn

from safe_dtype.rescaling import rescaled_of
from safe_dtype.rescaling.folding.written import Certificate, Overwritten

NAME = "model.layers.1.mlp.down_proj.weight"


def certified() -> tuple[Any, Certificate]:
    """Return a rescaled model, and its weights as they are."""
    model = rescued("llama")
    rescaled = rescaled_of(model)
    assert rescaled is not None
    return model, Certificate(rescaled.fold)


def own(model: Any) -> torch.Tensor:
    """Return the weight as it is without the rescale, in the dtype of the model."""
    return engineered("llama").get_parameter(NAME).detach().to(model.dtype)


def copy_without_gradient(model: Any) -> None:
    """Copy where autograd sees it."""
    with torch.no_grad():
        writers(model)[1].weight.copy_(own(model))


def replace_data(model: Any) -> None:
    """Replace the tensor."""
    writers(model)[1].weight.data = own(model)


def replace_parameter(model: Any) -> None:
    """Replace the parameter."""
    writers(model)[1].weight = nn.Parameter(own(model))


OWN = {
    "data": lambda model: writers(model)[1].weight.data.copy_(own(model)),
    "copy": copy_without_gradient,
    "other data": replace_data,
    "other parameter": replace_parameter,
}
RELATIVE = {
    "multiplied": lambda model: writers(model)[1].weight.data.mul_(1.3),
    "half of it": lambda model: writers(model)[1].weight.data[:40].mul_(2.0),
    "a row": lambda model: writers(model)[1].weight.data[7].mul_(2.0),
    "a column": lambda model: writers(model)[1].weight.data[:, 11].mul_(2.0),
}


def move(model: Any) -> None:
    """Move every weight to another place."""
    for one in model.parameters():
        one.data = one.data.clone()


ELSEWHERE: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "moved": move,
    "wider": lambda model: model.float(),
    "bfloat16": lambda model: model.bfloat16(),
}


@pytest.mark.parametrize("change", OWN.values(), ids=OWN)
def test_values_of_its_own_size(change: Callable[[Any], Any]) -> None:
    """Values as a checkpoint has them are told from those that the rescale has made smaller."""
    model, certificate = certified()
    change(model)
    assert certificate.written() == Overwritten((NAME,), frozenset({NAME}))


@pytest.mark.parametrize("change", RELATIVE.values(), ids=RELATIVE)
def test_values_made_from_what_was_there(change: Callable[[Any], Any]) -> None:
    """A change of what was there is one, and keeps the size."""
    model, certificate = certified()
    change(model)
    assert certificate.written() == Overwritten((NAME,), frozenset())


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
def test_nothing_written(change: Callable[[Any], Any]) -> None:
    """The same values at another place, or cast, are none that anybody has written."""
    model, certificate = certified()
    change(model)
    assert certificate.written() is None


def test_numbers() -> None:
    """An eps that somebody sets is the model's own."""
    model, certificate = certified()
    model.model.norm.variance_epsilon = 1e-5
    name = "model.norm.variance_epsilon"
    assert certificate.written() == Overwritten((name,), frozenset({name}))


def test_in_float32() -> None:
    """What is compared is no view of the weight itself."""
    model = rescued("llama").float()
    rescaled = rescaled_of(model)
    assert rescaled is not None
    certificate = Certificate(rescaled.fold)
    writers(model)[1].weight.data.mul_(1.3)
    assert certificate.written() == Overwritten((NAME,), frozenset())
    assert certificate.is_written(NAME)
