"""The products by weights that are held as codes of 8 and of 4 bits."""

from __future__ import annotations

import pytest
import torch
from kernels.codes import coded, few_rows_by, weight_of

from safe_dtype.facts import CODES, INT4, INT8, Dtype
from safe_dtype.kernels.row_product import MOST_ROWS, multiply_rows, multiply_rows_gated
from safe_dtype.kernels.weights.coded_product import multiply_coded

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [FP32, BF16, FP16]
ROWS = [1, 3, MOST_ROWS, MOST_ROWS + 1, 100]

both = pytest.mark.parametrize("codes", CODES, ids=str)


@pytest.fixture(params=["compiled", "torch"])
def _few_rows_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows_by(request.param, monkeypatch)


SHAPES = [
    *((shape, INT8) for shape in ((64, 256), (300, 1000), (77, 515))),
    *((shape, INT4) for shape in ((64, 256), (304, 992), (80, 32), (208, 544))),
]


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "codes"), SHAPES, ids=str)
def test_products(dtype: torch.dtype, shape: tuple[int, int], codes: Dtype) -> None:
    """Every number of rows and inputs is multiplied by what the codes stand for, within the rounding of float32 sums and the dtype's.

    Roundings of a sum of n products grow as sqrt(n), each 2**-24 of a part of the sum, which is no more than the sum of all
    magnitudes (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis"). oneDNN adds up in one
    register held to AVX2: 4.9e-6 for one of 4800 sums of 1000 products, where this allows about 2e-5.
    """
    made = coded(weight_of(shape, dtype), codes)
    stands_for = made.weight().double().T
    for rows, bias in ((rows, bias) for rows in ROWS for bias in (None, torch.randn(shape[0]).to(dtype))):
        x = torch.randn(2, rows, shape[1]).to(dtype)[0]
        right = x.double() @ stands_for + (0 if bias is None else bias.double())
        y = multiply_coded(x, made, bias, wide=FP32)
        assert (y.dtype, y.shape) == (dtype, right.shape)
        magnitudes = x.double().abs() @ stands_for.abs() + (0 if bias is None else bias.double().abs())
        allowed = shape[1] ** 0.5 * 2**-24 * magnitudes + 4 * torch.finfo(dtype).eps * right.abs().max()
        assert ((y.double() - right).abs() <= allowed).all(), (rows, bias is None)


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(304, 992), (64, 3072)], ids=str)
def test_bits_of_float32_products(dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> None:
    """Compiled sums by codes of 4 bits are those by the float32 weight that they stand for, bit for bit."""
    pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
    made = coded(weight_of(shape, dtype), INT4)
    x = torch.randn(rows, shape[1]).to(dtype)
    right = multiply_rows(x.float(), made.weight())
    assert torch.equal(multiply_coded(x, made, wide=FP32), right.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(dtype: torch.dtype) -> None:
    """Two products by codes of 4 bits in one pass have the bits that they have alone."""
    pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")
    gate, up = (coded(weight_of((304, 992), dtype, size), INT4) for size in (0.02, 0.05))
    x = torch.randn(3, 992).to(dtype)
    weighed = [(one.tensor, None, one.scales) for one in (gate, up)]
    first, second = (multiply_coded(x, one, wide=FP32).float() for one in (gate, up))
    near = torch.nn.functional.silu(first).to(dtype).float() * second
    answer = multiply_rows_gated(x, *weighed).float()
    assert (answer - near).abs().max() <= 2 * torch.finfo(dtype).eps * near.abs().max()


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("inputs", range(1, 66, 7))
def test_ends_of_rows(inputs: int) -> None:
    """Nothing is read beyond the end of a row: what lies there is no number."""
    codes = coded(weight_of((512, inputs), BF16), INT8)
    around = torch.full((1, 64 + inputs + 64), float("nan"), dtype=BF16)
    x = around[:, 64 : 64 + inputs]
    x.copy_(torch.randn(1, inputs))
    right = x.double() @ codes.weight().double().T
    assert ((multiply_coded(x, codes, wide=FP32).double() - right).abs() <= 0.02 * right.abs().max()).all()


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("rows", [1, MOST_ROWS])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 2])
@both
def test_parts_of_a_wider_tensor(dtype: torch.dtype, rows: int, step: int, codes: Dtype) -> None:
    """Inputs may begin at any number of a wider tensor, and lie apart in it."""
    made = coded(weight_of((512, 128), dtype), codes)
    x = torch.randn(rows, 300).to(dtype)[:, 1 : 1 + 128 * step : step]
    assert torch.equal(multiply_coded(x, made, wide=FP32), multiply_coded(x.clone().contiguous(), made, wide=FP32))


@pytest.mark.usefixtures("_few_rows_by")
@pytest.mark.parametrize("dtype", DTYPES)
@both
def test_nothing_saturates(dtype: torch.dtype, codes: Dtype) -> None:
    """The largest codes and inputs of one sign, which kernels that add up in 16 bits get wrong."""
    made = coded(torch.full((64, 1024), 0.5, dtype=dtype), codes)
    for rows in ROWS:
        y = multiply_coded(torch.ones(rows, 1024, dtype=dtype), made, wide=FP32)
        assert torch.allclose(y.double(), torch.full((rows, 64), 512.0).double(), rtol=0.005)


@both
@pytest.mark.parametrize("rows", [MOST_ROWS + 1, 600])
def test_many_rows_in_bfloat16(rows: int, codes: Dtype) -> None:
    """Where bfloat16 products are faster, many rows take them, at their rounding."""
    made = coded(weight_of((64, 256), BF16), codes)
    x = torch.randn(rows, 256).bfloat16()
    right = x.double() @ made.weight().double().T
    assert ((multiply_coded(x, made, wide=BF16).double() - right).abs() <= 0.02 * right.abs().max()).all()


@pytest.mark.usefixtures("_few_rows_by")
@both
@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)], ids=str)
def test_no_rows(shape: tuple[int, ...], codes: Dtype) -> None:
    """Of no rows there is no product, in the shape that it would have."""
    made = coded(weight_of((304, 64)), codes)
    assert multiply_coded(torch.ones(shape), made, wide=FP32).shape == (*shape[:-1], 304)
