"""A linear weight as 8-bit codes, and the products by them."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor

from safe_dtype.kernels.row_product import MOST_ROWS
from safe_dtype.kernels.weights.int8_weight import Int8Weight, can_be_coded, multiply_int8

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [FP32, BF16, FP16]
ROWS = [1, 3, MOST_ROWS, MOST_ROWS + 1, 100]


def weight_of(shape: tuple[int, int], dtype: torch.dtype = FP32, size: float = 0.02) -> Tensor:
    """Return a seeded weight."""
    torch.manual_seed(0)
    return (torch.randn(shape) * size).to(dtype)


def coded(weight: Tensor) -> Int8Weight:
    """Return its codes, which are there."""
    codes = Int8Weight.of(weight)
    assert codes is not None
    return codes


@pytest.fixture(params=["compiled", "torch"])
def _few_rows_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are multiplied by what is compiled, and as where nothing is."""
    if request.param == "compiled":
        pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
    else:
        monkeypatch.setattr(import_module("safe_dtype.kernels.weights.int8_weight"), "has_code", lambda *_: False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_within_half_a_scale(dtype: torch.dtype) -> None:
    """Codes reach the largest number of each row, and every number is held to half a scale, rounded as the scale is."""
    weight = weight_of((37, 500), dtype) * torch.logspace(-2, 2, 37)[:, None].to(dtype)
    codes = coded(weight)
    assert (codes.tensor.dtype, codes.scales.dtype) == (torch.int8, dtype)
    assert (codes.tensor.abs().amax(1) >= 126).all()
    off = (codes.weight() - weight.float()).abs()
    assert (off <= codes.scales.float()[:, None] * 0.51 + weight.float().abs() * torch.finfo(dtype).eps / 2).all()


def test_codes_that_are_exact() -> None:
    """A weight that is made of codes and scales comes out as it was, bit for bit."""
    torch.manual_seed(0)
    tensor = torch.randint(-127, 128, (64, 300))
    tensor[:, 0] = 127
    weight = tensor * 2.0 ** torch.randint(-10, 0, (64, 1))
    assert torch.equal(coded(weight.bfloat16()).weight(), weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_rows(dtype: torch.dtype) -> None:
    """Rows of zeros stay so; those near the end of the dtype keep numbers, and no scale is zero."""
    weight = torch.zeros(3, 6000, dtype=dtype)
    weight[1] = torch.finfo(dtype).smallest_normal
    codes = coded(weight)
    assert (codes.scales > 0).all()
    assert not codes.weight()[[0, 2]].any()
    assert torch.allclose(codes.weight()[1], weight[1].float(), rtol=0.02, atol=0)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_not_finite(number: float) -> None:
    """A weight that holds what no code stands for has none."""
    weight = weight_of((200, 100))
    weight[150, 7] = number
    assert Int8Weight.of(weight) is None


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes do not depend on how many rows are rounded at a time."""
    weight = weight_of((300, 100))
    whole = coded(weight)
    monkeypatch.setattr(import_module("safe_dtype.kernels.weights.int8_weight"), "_CODED_AT_ONCE", 700)
    pieces = coded(weight)
    assert torch.equal(whole.tensor, pieces.tensor)
    assert torch.equal(whole.scales, pieces.scales)


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 256), (300, 1000), (77, 515)], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
def test_products(dtype: torch.dtype, rows: int, shape: tuple[int, int], *, biased: bool) -> None:
    """Every number of rows and inputs is multiplied by what the codes stand for, within the dtype's own rounding."""
    codes = coded(weight_of(shape, dtype))
    x = torch.randn(2, rows, shape[1]).to(dtype)[0]
    bias = torch.randn(shape[0]).to(dtype) if biased else None
    right = x.double() @ codes.weight().double().T + (0 if bias is None else bias.double())
    y = multiply_int8(x, codes, bias, wide=FP32)
    assert (y.dtype, y.shape) == (dtype, right.shape)
    allowed = max(4 * torch.finfo(dtype).eps, 2e-6) * right.abs().max()
    assert ((y.double() - right).abs() <= allowed).all()


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("inputs", range(1, 66, 7))
def test_ends_of_rows(inputs: int) -> None:
    """Nothing is read beyond the end of a row: what lies there is no number."""
    codes = coded(weight_of((512, inputs), BF16))
    around = torch.full((1, 64 + inputs + 64), float("nan"), dtype=BF16)
    x = around[:, 64 : 64 + inputs]
    x.copy_(torch.randn(1, inputs))
    right = x.double() @ codes.weight().double().T
    assert ((multiply_int8(x, codes, wide=FP32).double() - right).abs() <= 0.02 * right.abs().max()).all()


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("rows", [1, MOST_ROWS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 2])
def test_parts_of_a_wider_tensor(dtype: torch.dtype, rows: int, step: int) -> None:
    """Inputs may begin at any number of a wider tensor, and lie apart in it."""
    codes = coded(weight_of((512, 128), dtype))
    x = torch.randn(rows, 300).to(dtype)[:, 1 : 1 + 128 * step : step]
    assert torch.equal(multiply_int8(x, codes, wide=FP32), multiply_int8(x.clone().contiguous(), codes, wide=FP32))


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_saturates(dtype: torch.dtype, rows: int) -> None:
    """The largest codes and inputs of one sign, which kernels that add up in 16 bits get wrong."""
    codes = coded(torch.full((64, 1024), 0.5, dtype=dtype))
    y = multiply_int8(torch.ones(rows, 1024, dtype=dtype), codes, wide=FP32)
    assert torch.allclose(y.double(), torch.full((rows, 64), 512.0).double(), rtol=0.005)


@pytest.mark.parametrize("rows", [MOST_ROWS + 1, 600])
def test_many_rows_in_bfloat16(rows: int) -> None:
    """Where bfloat16 products are faster, many rows take them, at their rounding."""
    codes = coded(weight_of((64, 256), BF16))
    x = torch.randn(rows, 256).bfloat16()
    right = x.double() @ codes.weight().double().T
    assert ((multiply_int8(x, codes, wide=BF16).double() - right).abs() <= 0.02 * right.abs().max()).all()


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)], ids=str)
def test_no_rows(shape: tuple[int, ...]) -> None:
    """Of no rows there is no product, in the shape that it would have."""
    codes = coded(weight_of((300, 64)))
    assert multiply_int8(torch.ones(shape), codes, wide=FP32).shape == (*shape[:-1], 300)


def test_bytes() -> None:
    """A byte for each number, and a scale for each output."""
    assert coded(weight_of((300, 100), BF16)).nbytes == 300 * 100 + 300 * 2


@pytest.mark.parametrize(
    ("weight", "can_be"),
    [
        (torch.ones(128, 128), True),
        (torch.ones(128, 128, dtype=FP16), True),
        (torch.ones(127, 128), False),
        (torch.ones(4, 128, 128), False),
        (torch.ones(128, 256)[:, ::2], False),
        (torch.ones(128, 128, dtype=torch.float64), False),
        (torch.ones(128, 128, device="meta"), False),
    ],
    ids=["float32", "float16", "small", "experts", "strided", "float64", "meta"],
)
def test_can_be_coded(weight: Tensor, *, can_be: bool) -> None:
    """Matrices in one of the dtypes of models, in main memory, of a size that is worth it."""
    assert can_be_coded(weight) is can_be
