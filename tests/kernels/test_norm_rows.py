"""Rows divided by their root mean square, compiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from safe_dtype.kernels.norm_rows import can_normalize, normalize_rows

pytest.importorskip("llvmlite", reason="norms are compiled by llvmlite, of the extra `fast`")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 1, 1024), (3, 7, 128), (40, 5, 96), (2, 33), (1, 1), (600, 77)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_that_of_transformers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Numbers are those of transformers: nearly all to the bit, and the others one rounding off."""
    torch.manual_seed(0)
    norm = LlamaRMSNorm(shape[-1], eps=1e-5).to(dtype).requires_grad_(False)
    nn.init.normal_(norm.weight)
    x = (3 * torch.randn(shape)).to(dtype)
    mine, right = normalize_rows(x, norm.weight, 1e-5), norm(x)
    assert mine.shape == right.shape
    assert mine.dtype is dtype
    # Both roundings may fall on the other side; in float32 each of the five does.
    allowed = (5 if dtype is torch.float32 else 2) * torch.finfo(dtype).eps * right.double().abs() + 1e-9
    assert bool(((mine.double() - right.double()).abs() <= allowed).all())
    if dtype is not torch.float32:
        assert float((mine == right).double().mean()) > 0.998
    assert torch.equal(mine, normalize_rows(x, norm.weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ends_of_the_range(dtype: torch.dtype) -> None:
    """Zeros stay zeros, NaN and Inf spoil their row and no other, and squares that are too large do what torch's do."""
    norm = LlamaRMSNorm(40, eps=1e-6).to(dtype).requires_grad_(False)
    x = torch.randn(5, 40).to(dtype)
    x[0], x[1, 3], x[2, 39], x[3] = 0, float("nan"), float("inf"), torch.finfo(dtype).max
    mine, right = normalize_rows(x, norm.weight, 1e-6), norm(x)
    assert torch.equal(mine.isnan(), right.isnan())
    assert torch.allclose(mine.nan_to_num(), right.nan_to_num(), rtol=5 * torch.finfo(dtype).eps)
    assert bool(mine[4].isfinite().all())


def test_what_is_not_compiled() -> None:
    """Other dtypes are refused."""
    assert not can_normalize(torch.float64)
    with pytest.raises(RuntimeError, match=r"torch\.float64"):
        normalize_rows(torch.ones(1, 2).double(), torch.ones(2).double(), 1e-6)
