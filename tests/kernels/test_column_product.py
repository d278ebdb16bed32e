"""The product of few rows by a weight that was saved with a row for each input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safe_dtype.kernels.column_product import has_column_code, multiply_columns, multiply_columns_by_some
from safe_dtype.kernels.row_product import Share, multiply_rows, multiply_rows_by_some

pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHARES: list[Share] = [(3, 0, 2), (1, 2, 1), (5, 0, 7), (0, 3, 0), (3, 6, 1)]


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return seeded numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (31, 3), (33, 5), (64, 64), (65, 100), (1000, 77)], ids=str)
def test_within_one_rounding(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Each number is the right one, rounded once, with a bias and without, for rows of a wider tensor as well."""
    inputs, outputs = shape
    weight, bias = numbers(inputs, outputs + 3, dtype=dtype)[:, :outputs], numbers(outputs, dtype=dtype, seed=1)
    for rows in (1, 2, 9, 17):
        x = numbers(rows, inputs, dtype=dtype, seed=2)
        for added in (None, bias):
            right = x.double() @ weight.double() + (0 if added is None else added.double())
            summed = x.double().abs() @ weight.double().abs() + 1
            allowed = torch.finfo(dtype).eps / 2 * right.abs() + 2e-7 * summed
            assert ((multiply_columns(x, weight, added).double() - right).abs() <= allowed).all(), rows


def test_same_bits_on_any_number_of_threads() -> None:
    """Whoever computes a part of the sums, and beside which other rows, the bits are the same."""
    x, weight = numbers(16, 700, dtype=torch.bfloat16), numbers(700, 900, dtype=torch.bfloat16, seed=1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(multiply_columns(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, results[0]) for one in results)
    for rows in (1, 5, 15):
        assert torch.equal(multiply_columns(x[:rows], weight), results[0][:rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_some_of_a_stack(dtype: torch.dtype) -> None:
    """Matrices of a stack multiply the rows that are theirs, with the bits that each has alone, in either layout."""
    stack, biases, x = numbers(6, 40, 50, dtype=dtype), numbers(6, 50, dtype=dtype), numbers(7, 40, dtype=dtype)
    turned = stack.transpose(1, 2).contiguous()
    for added in (None, biases):
        of_each = [None if added is None else added[number] for number, _, _ in SHARES]
        columns, rows = (
            torch.cat([
                multiply(x[row : row + count], one[number], bias)
                for (number, row, count), bias in zip(SHARES, of_each, strict=True)
            ])
            for multiply, one in ((multiply_columns, stack), (multiply_rows, turned))
        )  # fmt: skip
        assert torch.equal(multiply_columns_by_some(x, stack, added, SHARES), columns)
        assert torch.equal(multiply_rows_by_some(x, turned, added, SHARES), rows)


def test_not_finite() -> None:
    """NaN and infinity come through where torch has them."""
    x, weight = numbers(3, 70, dtype=torch.bfloat16), numbers(70, 40, dtype=torch.bfloat16)
    x[1, 0], weight[5, 3], weight[6, 4] = torch.nan, torch.inf, -torch.inf
    got, right = multiply_columns(x, weight), x.double() @ weight.double()
    assert torch.equal(got.isnan(), right.isnan())
    assert torch.equal(got.isinf(), right.isinf())


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(rows: int, inputs: int, outputs: int) -> None:
    """Without rows, inputs or outputs the result is what torch has."""
    x, weight, bias = torch.ones(rows, inputs), torch.ones(inputs, outputs), torch.arange(float(outputs))
    assert torch.equal(multiply_columns(x, weight, bias), torch.addmm(bias, x, weight))


def test_no_code_for_other_dtypes() -> None:
    """What nobody wrote a product for is refused."""
    assert not has_column_code(torch.float64)
    with pytest.raises(RuntimeError, match=r"no products of torch\.float64"):
        multiply_columns(torch.ones(1, 2).double(), torch.ones(2, 2).double())
