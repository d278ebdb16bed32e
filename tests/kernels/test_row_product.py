"""The product of few rows by a weight as it was saved."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from safe_dtype.kernels.row_product import (
    MOST_ROWS,
    has_code,
    multiply_rows,
    multiply_rows_by_each,
    multiply_rows_gated,
)

pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")

BF16, FP16, FP32, INT8 = torch.bfloat16, torch.float16, torch.float32, torch.int8
PAIRS = [
    (BF16, BF16),
    (FP16, FP16),
    (FP32, FP32),
    (BF16, FP32),
    (FP16, FP32),
    (INT8, BF16),
    (INT8, FP16),
    (INT8, FP32),
]
SHAPES = [(1, 1), (3, 31), (5, 33), (64, 32), (300, 1024), (77, 1000)]
NAN, INF = float("nan"), float("inf")


def operands(weight: torch.dtype, x: torch.dtype, shape: tuple[int, int], rows: int) -> tuple[Tensor, Tensor]:
    """Return rows and a weight, seeded."""
    torch.manual_seed(0)
    numbers = torch.randn(shape)
    stored = (numbers * 40).clamp(-127, 127).round() if weight is INT8 else numbers
    return torch.randn(rows, shape[1]).to(x), stored.to(weight)


def widened(x: Tensor, weight: Tensor) -> Tensor:
    """Return the product in float64."""
    return x.double() @ weight.double().T


@pytest.mark.parametrize(("weight_dtype", "x_dtype"), PAIRS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_within_one_rounding(weight_dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    """Each number is the right one, rounded once: half a unit in the last place, and what float32 sums are off."""
    for shape in SHAPES:
        for rows in range(1, MOST_ROWS + 1):
            x, weight = operands(weight_dtype, x_dtype, shape, rows)
            right = widened(x, weight)
            summed = widened(x.abs(), weight.abs())  # what the errors of sums are a part of
            allowed = torch.finfo(x_dtype).eps / 2 * right.abs() + 2e-7 * summed
            assert ((multiply_rows(x, weight).double() - right).abs() <= allowed).all(), (shape, rows)


@pytest.mark.parametrize(("weight_dtype", "x_dtype"), PAIRS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_several_weights_at_once(weight_dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    """Each product has the bits that it has alone, whatever the sizes and strides, with its own bias and scales."""
    for inputs, sizes in ((40, (1, 700, 3, 9000)), (1030, (65, 1)), (64, (0, 513, 0, 2))):
        torch.manual_seed(0)
        x = torch.randn(5, inputs).to(x_dtype)
        weights = []
        for number, outputs in enumerate(sizes):
            stored = (40 * torch.randn(outputs, inputs + 3 * number)).clamp(-127, 127).to(weight_dtype)[:, :inputs]
            bias = torch.randn(outputs).to(x_dtype) if number % 2 else None
            scales = torch.rand(outputs).to(x_dtype) if weight_dtype is INT8 else None
            weights.append((stored, bias, scales))
        for result, weight in zip(multiply_rows_by_each(x, weights), weights, strict=True):
            assert torch.equal(result, multiply_rows(x, *weight))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_gated(dtype: torch.dtype) -> None:
    """SiLU of the first product, times the second, is what torch makes of the same products, within one rounding."""
    torch.manual_seed(0)
    x, gate, weight = (torch.randn(*shape).to(dtype) for shape in ((3, 60), (99, 60), (99, 60)))
    bias = (8 * torch.randn(99)).to(dtype)
    bias[:4] = torch.tensor([-INF, INF, NAN, -300.0])
    mine = multiply_rows_gated(x, (gate, bias, None), (weight, None, None))
    first, second = multiply_rows(x, gate, bias), multiply_rows(x, weight)
    right = torch.nn.functional.silu(first) * second
    assert torch.equal(mine.isnan(), right.isnan())
    assert torch.allclose(
        mine.nan_to_num(),
        right.nan_to_num(),
        rtol=8 * torch.finfo(FP32).eps + (dtype is not FP32) * torch.finfo(dtype).eps,
    )
    if dtype is not FP32:
        assert float((mine == right).double().mean()) > 0.97


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_bias_and_scales(dtype: torch.dtype) -> None:
    """Scales and bias are applied to the float32 sum, before the rounding."""
    x, weight = operands(INT8, dtype, (37, 100), 3)
    scales, bias = torch.rand(37).to(dtype), torch.randn(37).to(dtype)
    right = widened(x, weight) * scales.double() + bias.double()
    got = multiply_rows(x, weight, bias, scales).double()
    assert torch.allclose(got, right, rtol=torch.finfo(dtype).eps, atol=1e-4)
    alone = multiply_rows(x, weight, bias)
    assert torch.allclose(alone.double(), widened(x, weight) + bias.double(), rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_ties_go_to_even() -> None:
    """A sum in the middle between two numbers of bfloat16 goes to the even one, as in torch."""
    sums = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20])
    got = multiply_rows(torch.ones(1, 1), sums.view(-1, 1))[0]
    assert torch.equal(got, sums)
    parts = torch.tensor([[1.0, 2**-8], [1.0, 3 * 2**-8], [-1.0, -(2**-8)]], dtype=BF16)
    assert torch.equal(multiply_rows(torch.ones(1, 2, dtype=BF16), parts)[0], parts.float().sum(1).to(BF16))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_not_finite(dtype: torch.dtype) -> None:
    """NaN and infinity come through where torch has them, whether they stand in x or in the weight."""
    x, weight = operands(dtype, dtype, (40, 70), 5)
    x[1, 0], x[2, 69], x[3, 33] = NAN, INF, -INF
    weight[3, 5], weight[4, 69], weight[5, 0] = NAN, INF, -INF
    got, right = multiply_rows(x, weight), widened(x, weight)
    assert torch.equal(got.isnan(), right.isnan())
    assert torch.equal(got.isposinf(), right.isposinf())
    assert torch.equal(got.isneginf(), right.isneginf())


def test_nan_has_the_bits_of_torch() -> None:
    """NaN of any bits in a bfloat16 weight is the NaN that torch rounds to."""
    weight = torch.tensor([[0x7F81], [0x7FFF]], dtype=torch.int16).view(BF16)
    got = multiply_rows(torch.ones(1, 1, dtype=BF16), weight).view(torch.int16)
    assert got.tolist() == [[0x7FC0, 0x7FC0]]


def test_overflow_is_infinite() -> None:
    """What float16 cannot hold is infinite, not wrapped."""
    weight = torch.full((2, 8), 60000.0, dtype=FP16)
    weight[1] *= -1
    assert multiply_rows(torch.ones(1, 8, dtype=FP16), weight).tolist() == [[INF, -INF]]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_denormals(dtype: torch.dtype) -> None:
    """Numbers below the smallest normal one count."""
    tiny = torch.finfo(dtype).tiny / 4
    weight = torch.full((3, 64), tiny, dtype=dtype)
    got = multiply_rows(torch.ones(1, 64, dtype=dtype), weight)
    assert torch.equal(got, torch.full((1, 3), 64 * tiny, dtype=dtype))
    assert multiply_rows(torch.ones(1, 1, dtype=dtype), weight[:, :1])[0, 0] == tiny


def test_empty() -> None:
    """Without rows, outputs or inputs the result is what torch has."""
    for rows, outputs, inputs in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x, weight, bias = torch.ones(rows, inputs), torch.ones(outputs, inputs), torch.arange(float(outputs))
        assert torch.equal(multiply_rows(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


def test_same_bits_on_any_number_of_threads() -> None:
    """Whoever computes a result, and beside which others, its bits are the same."""
    x, weight = operands(BF16, FP32, (3000, 515), MOST_ROWS)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(multiply_rows(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, results[0]) for one in results)
    for rows in range(1, MOST_ROWS):
        assert torch.equal(multiply_rows(x[:rows], weight), results[0][:rows])


def test_many_callers() -> None:
    """Several Python threads multiply at once, each its own."""
    weights = [torch.full((4000, 256), float(number)) for number in range(8)]
    x = torch.ones(2, 256)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = list(pool.map(lambda weight: multiply_rows(x, weight), weights))
            assert all(bool((result == 256.0 * number).all()) for number, result in enumerate(results))


def test_slices_of_a_weight() -> None:
    """A part of a fused weight, and every other row of one, is multiplied where it lies."""
    x, weight = operands(BF16, BF16, (60, 128), 2)
    for part in (weight[20:40], weight[::2], weight[:, :64]):
        rows = x[:, : part.shape[1]]
        assert torch.equal(multiply_rows(rows, part), multiply_rows(rows.contiguous(), part.contiguous()))


def test_shape_of_x() -> None:
    """The dimensions of x before its last one stay."""
    x, weight = operands(FP32, FP32, (6, 40), 4)
    assert multiply_rows(x[0], weight).shape == (6,)
    assert torch.equal(multiply_rows(x.view(2, 2, 40), weight).view(4, 6), multiply_rows(x, weight))


def test_no_code_for_other_dtypes() -> None:
    """What nobody wrote a product for is refused, not computed wrongly."""
    assert not has_code(torch.float64, torch.float64)
    assert not has_code(INT8, INT8)
    with pytest.raises(RuntimeError, match=r"no products of torch\.float64 by torch\.float64"):
        multiply_rows(torch.ones(1, 2).double(), torch.ones(2, 2).double())


@pytest.mark.parametrize(("weight_dtype", "x_dtype"), [(BF16, BF16), (FP32, FP32), (INT8, BF16)])
@pytest.mark.parametrize("inputs", [1536, 1537, 2100])
def test_many_inputs(weight_dtype: torch.dtype, x_dtype: torch.dtype, inputs: int) -> None:
    """Of many inputs several outputs are computed at once, of any number of rows with the bits that each has alone."""
    x, weight = operands(weight_dtype, x_dtype, (23, inputs), MOST_ROWS + 1)
    bias, scales = torch.randn(23).to(x_dtype), torch.rand(23).to(x_dtype)
    results = multiply_rows(x, weight, bias, scales)
    right = widened(x, weight) * scales.double() + bias.double()
    allowed = torch.finfo(x_dtype).eps / 2 * right.abs() + 2e-7 * widened(x.abs(), weight.abs())
    assert ((results.double() - right).abs() <= allowed).all()
    for rows in range(1, MOST_ROWS + 1):
        assert torch.equal(multiply_rows(x[:rows], weight, bias, scales), results[:rows])
