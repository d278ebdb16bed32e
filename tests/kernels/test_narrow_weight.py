"""Products by float32 weights that are held in 16 bit."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from safe_dtype.facts import LEAST_NARROWED
from safe_dtype.kernels.row_product import MOST_ROWS
from safe_dtype.kernels.weights.narrow_weight import NarrowWeight, can_be_narrowed, multiply_narrow

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HALVES = [BF16, FP16]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return seeded numbers of a 16-bit format, in float32."""
    torch.manual_seed(sum(shape))
    return torch.randn(shape).mul_(0.05).to(dtype).float()


def held(weight: Tensor, dtype: torch.dtype) -> NarrowWeight:
    """Return what holds a weight exactly."""
    found = NarrowWeight.exactly(weight, dtype)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_exactly(dtype: torch.dtype) -> None:
    """Numbers of a 16-bit format come back with their bits, in half of the bytes."""
    weight = numbers((300, 100), dtype)
    weight[0, :3] = torch.tensor([0.0, -0.0, -torch.inf])
    found = held(weight, dtype)
    assert torch.equal(found.tensor.float().view(torch.int32), weight.view(torch.int32))
    assert (found.nbytes, found.out_features) == (weight.nbytes // 2, 300)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("number", [1 + 2**-20, 2**-140, float("nan")], ids=["finer", "smaller", "nan-with-a-payload"])
def test_not_exactly(number: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number that is another one in 16 bit, in whatever piece it is looked at, leaves a weight as it is."""
    monkeypatch.setattr(import_module(NarrowWeight.__module__), "_AT_ONCE", 700)
    weight = numbers((300, 100), dtype)
    weight[250, 7] = number
    if number != number:  # which nobody rounds to this one
        weight.view(torch.int32)[250, 7] = 0x7F800001
    assert NarrowWeight.exactly(weight, dtype) is None


def test_rounded() -> None:
    """A weight is rounded as torch rounds it, and stays as it is where that leaves the range."""
    weight = torch.randn(300, 100)
    found = NarrowWeight.rounded(weight, FP16)
    assert found is not None
    assert torch.equal(found.tensor, weight.half())
    assert not found.is_exact
    weight[7, 7] = 1e5
    assert NarrowWeight.rounded(weight, FP16) is None
    assert NarrowWeight.rounded(weight, BF16) is not None


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, MOST_ROWS, MOST_ROWS + 1, 70])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
def test_products(dtype: torch.dtype, rows: int, *, biased: bool) -> None:
    """They are those of float32, whatever the number of rows: within the rounding of its sums."""
    weight = numbers((300, 515), dtype)
    x = torch.randn(2, rows, 515)
    bias = torch.randn(300) if biased else None
    right = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    y = multiply_narrow(x, held(weight, dtype), bias)
    assert (y.dtype, y.shape) == (FP32, right.shape)
    assert ((y.double() - right).abs() <= 2e-6 * right.abs().max()).all()


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)], ids=str)
def test_no_rows(shape: tuple[int, ...]) -> None:
    """Of no rows there is no product, in the shape that it would have."""
    assert multiply_narrow(torch.ones(shape), held(numbers((300, 64), BF16), BF16)).shape == (*shape[:-1], 300)


def test_lookups() -> None:
    """Rows are those of the weight, bit for bit; a number beyond the last one is torch's own error."""
    weight = numbers((300, 64), BF16)
    narrow, ids = held(weight, BF16), torch.tensor([[0, 299], [5, 5]])
    assert torch.equal(narrow.rows(ids), weight[ids])
    with pytest.raises(IndexError, match="index out of range"):
        narrow.rows(torch.tensor([300]))


@pytest.mark.parametrize(
    ("weight", "can_be"),
    [
        (torch.ones(LEAST_NARROWED // 512, 512), True),
        (torch.ones(LEAST_NARROWED // 512 - 1, 512), False),
        (torch.ones(LEAST_NARROWED // 512, 512, dtype=FP16), False),
        (torch.ones(2, LEAST_NARROWED // 512, 512), False),
        (torch.ones(LEAST_NARROWED // 512, 1024)[:, ::2], False),
        (torch.ones(LEAST_NARROWED // 512, 512, device="meta"), False),
    ],
    ids=["float32", "small", "float16", "experts", "strided", "meta"],
)
def test_can_be_narrowed(weight: Tensor, *, can_be: bool) -> None:
    """Matrices in float32, in main memory, of a size that is worth it."""
    assert can_be_narrowed(weight) is can_be
