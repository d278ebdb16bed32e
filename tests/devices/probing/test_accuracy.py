"""How far off a result may be."""

from __future__ import annotations

import math

import pytest
import torch

from safe_dtype.devices.probing.accuracy import relative_error, tolerance
from safe_dtype.facts import BFLOAT16, FLOAT8_E4M3, FLOAT16, FLOAT32, Dtype


def test_relative_error() -> None:
    """The largest difference counts, over the largest exact value."""
    result = torch.tensor([1.0, -4.0])
    assert relative_error(result, result, torch.tensor([1.0, -5.0], dtype=torch.float64)) == pytest.approx(0.2)
    assert relative_error(torch.tensor([math.nan, 1.0]), result, result.double()) == math.inf


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [
        pytest.param(BFLOAT16, 4 * 2**-7, id="bf16"),
        pytest.param(FLOAT16, 2e-2, id="fp16-accumulating-in-fp16"),
        pytest.param(FLOAT8_E4M3, 4 * 2**-3, id="fp8"),
    ],
)
def test_tolerance(dtype: Dtype, allowed: float) -> None:
    """Four roundings of the format, and at least what others allow 16-bit kernels."""
    assert tolerance(getattr(torch, dtype.name), dtype, multiplies=True) == allowed


@pytest.mark.parametrize(
    ("precision", "multiplies", "allowed"),
    [
        pytest.param("highest", True, 4 * 2**-10, id="tf32-may-be-forced-from-outside"),
        pytest.param("medium", True, 4 * 2**-7, id="bf16-inside"),
        pytest.param("medium", False, 1e-4, id="norms-have-no-products"),
    ],
)
def test_tolerance_of_float32(precision: str, multiplies: bool, allowed: float) -> None:
    """float32 products may use a narrower format inside, other operations may not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert tolerance(torch.float32, FLOAT32, multiplies=multiplies) == allowed
    finally:
        torch.set_float32_matmul_precision(before)
