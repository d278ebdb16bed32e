"""Weights that are rounded to codes in tests, and what multiplies by them."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from safe_dtype.facts import Dtype, plainly
from safe_dtype.kernels.weights.coded_weight import CodedWeight

_MODULES = ("coded_weight", "coded_product")


def weight_of(shape: tuple[int, int], dtype: torch.dtype = torch.float32, size: float = 0.02) -> Tensor:
    """Return a seeded weight."""
    torch.manual_seed(0)
    return (torch.randn(shape) * size).to(dtype)


def coded(weight: Tensor, codes: Dtype) -> CodedWeight:
    """Return its codes, which are there."""
    made = CodedWeight.of(weight, plainly(codes))
    assert made is not None
    return made


def few_rows_by(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few rows multiplied by what is "compiled", or by "torch" as where nothing is."""
    if who == "compiled":
        pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
        return
    for module in _MODULES:
        monkeypatch.setattr(import_module(f"safe_dtype.kernels.weights.{module}"), "has_code", lambda *_: False)
