"""A method that returns codes or texts is looked at where there are numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from safe_dtype import guard, report
from safe_dtype.guarding.entries.codes import Codes, with_numbers
from safe_dtype.testing import fault


class Coder(nn.Module):
    """A layer, and codes of what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the place of the largest of the last dimension."""
        for layer in self.layers:
            x = layer(x)
        return x.argmax(-1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last layer's output."""
        return self.layers[1](x)

    def named(self, x: torch.Tensor) -> str:
        """Return a text."""
        return str(self.encode(x).tolist())


class Twice(nn.Module):
    """Twice as much."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return 2 * x


def coder() -> Any:
    """Return one in bfloat16."""
    torch.manual_seed(0)
    return Coder().eval().to(torch.bfloat16)


X = torch.tensor([[1.0, 2, 3, 4], [4, -3, 2, -1]], dtype=torch.bfloat16)


@pytest.mark.parametrize("method", ["encode", "named"])
def test_codes_of_nan(method: str) -> None:
    """Codes of NaN are made again in float32, though nothing in them tells."""
    model = coder()
    truth = copy.deepcopy(model).float()
    guard(model)
    with torch.no_grad(), fault(model, "layers.1", "nan"):
        codes = getattr(model, method)(X)
    assert str(codes) == str(getattr(truth, method)(X.float()))
    assert [event.module for event in report(model).events] == ["layers.1"]


def test_numbers_are_as_they_were() -> None:
    """What has floating numbers is returned as it is, codes with one number a part; no hook stays."""
    model = coder()
    assert torch.equal(with_numbers(model, model.embed)(X), model.embed(X))
    codes = with_numbers(model, model.encode)(X)
    assert isinstance(codes, Codes)
    assert torch.equal(codes.output, model.encode(X))
    assert [number.shape for number in codes.largest] == [(), ()]
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        with_numbers(model, model.encode)(X[:, :3])
    assert not any(module._forward_hooks for module in model.modules())


def test_compiled_parts() -> None:
    """A part that was compiled in place is let be: a hook would have it compiled anew at every call."""
    model = coder()
    model.layers.append(Twice())
    compiled: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model.layers[2].compile(backend=backend)
    guard(model)
    with torch.no_grad():
        for _ in range(3):
            model.encode(X)
    assert len(compiled) == 1
    torch.compiler.reset()
