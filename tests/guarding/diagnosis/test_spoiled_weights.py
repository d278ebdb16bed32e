"""Weights that are no numbers themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from safe_dtype.guarding.diagnosis.spoiled_weights import spoiled_weights


def test_weights_that_are_numbers() -> None:
    """Nothing is said of them."""
    assert spoiled_weights(nn.Linear(4, 3).half()) is None


def test_counted() -> None:
    """Each is named, with how many of its numbers are none; codes and what is not loaded yet are not looked at."""
    model = nn.Sequential(nn.Linear(4, 3).half(), nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))
    model[0].weight.data[0, :2] = torch.inf
    model[1].bias.data[1] = torch.nan
    text = spoiled_weights(model)
    assert text is not None
    assert text.startswith("0.weight in 2 of 12 numbers, 1.bias in 1 of 2 numbers hold NaN or Inf. Next: ")


def test_many() -> None:
    """Of many the first two are named."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(4)))
    for weight in model.parameters():
        weight.data.fill_(torch.nan)
    assert "1.weight in 1 of 1 numbers and 2 more weights hold" in str(spoiled_weights(model))


class Coded(Tensor):
    """A weight of codes and scales that knows no operation, as those of quantizers know few."""

    codes: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor) -> Coded:
        """Return one that claims to be in float32."""
        made: Coded = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined]
        made.codes, made.scales = codes, scales
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Return what it consists of."""
        return ["codes", "scales"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what is no copy of the whole."""
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scales)
        raise NotImplementedError(func)


def test_quantized_weights() -> None:
    """Of a weight of another class its parts are looked at, whatever that class can compute."""
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(Coded(torch.ones(3, 4, dtype=torch.int8), torch.tensor([1.0, torch.nan, 1.0])))
    assert str(spoiled_weights(module)).startswith("weight.scales in 1 of 3 numbers hold NaN or Inf")
