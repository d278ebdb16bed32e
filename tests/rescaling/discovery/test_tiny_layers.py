"""A tiny model keeps a layer of every kind."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from rescaling.real_configs import REAL
from torch import nn

from safe_dtype.rescaling.discovery.twin import Twin, make_twin

every_type = pytest.mark.parametrize("name", REAL)


@cache
def twin_of(name: str) -> Twin:
    """Make each twin once: nothing here changes them."""
    return make_twin(REAL[name].model_class, REAL[name].config())


def kinds_of_layers(model: nn.Module) -> dict[str, set[Any]]:
    """Return for every list of layers the kinds in it: a kind is a tree of classes, with their flags and labels."""

    def kind(layer: nn.Module) -> Any:
        return tuple(
            (name, type(module).__name__, *sorted(
                (key, said) for key, said in vars(module).items()
                if isinstance(said, bool | str) and key != "training" and not key.startswith("_")
            ))
            for name, module in layer.named_modules()
        )  # fmt: skip

    return {
        name: {kind(layer) for layer in module}
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not any(part.isdigit() for part in name.split("."))
    }


@every_type
def test_keeps_every_kind_of_layer(name: str) -> None:
    """Each kind of layer that the real model has is among the twin's, which has three layers or more."""
    real = REAL[name]
    with torch.device("meta"):
        kinds = kinds_of_layers(real.model_class(real.config()))
    model = twin_of(name).model
    assert kinds
    assert {key: found for key, found in kinds_of_layers(model).items() if key in kinds} == kinds
    assert all(len(model.get_submodule(key)) >= 3 for key in kinds)
