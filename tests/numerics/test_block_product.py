"""Weights in blocks: the same numbers, multiplied with one rounding."""

from __future__ import annotations

import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from safe_dtype.numerics import Blocks, can_lay_out, product

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = [(256, 64), (512, 33), (300, 64), (255, 64), (1, 64), (257, 1), (1000, 700)]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def roundings_off(found: Tensor, exact: Tensor, terms: Tensor) -> float:
    """Return by how many roundings a result is off at most, beside what float32 loses of the terms that it adds up."""
    rounding = torch.finfo(found.dtype).eps / 2 * exact.abs().clamp(min=torch.finfo(found.dtype).tiny)
    error = (found.double() - exact).abs() - 1e-6 * terms
    return float((error / rounding).max()) if found.numel() else 0.0


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_weight_comes_back_bit_for_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Laying out loses nothing, whether or not the outputs fill whole blocks."""
    weight = numbers(*shape, dtype=dtype)
    weight[0, 0] = torch.nan
    back = Blocks.of(weight).weight()
    assert back.is_contiguous()
    bits = torch.int32 if dtype == F32 else torch.int16
    assert torch.equal(back.view(bits), weight.view(bits))


def test_a_dtype_rounds() -> None:
    """With a dtype the blocks hold the weight rounded to it."""
    weight = numbers(300, 64, dtype=F32)
    assert torch.equal(Blocks.of(weight, BF16).weight(), weight.to(BF16))


@pytest.mark.parametrize("weight", [numbers(64, 300).t(), numbers(300, 128)[:, ::2]], ids=["transposed", "strided"])
def test_a_weight_that_is_not_contiguous(weight: Tensor) -> None:
    """A view of other numbers is laid out, too."""
    assert torch.equal(Blocks.of(weight).weight(), weight)


def test_blocks_have_no_history() -> None:
    """Blocks of a parameter are plain numbers."""
    assert not Blocks.of(torch.nn.Parameter(numbers(300, 64))).tensor.requires_grad


@pytest.mark.parametrize(
    ("shape", "rows", "dtype", "wide"), pairwise(SHAPES, [0, 1, 2, 8, 9, 17, 100], [BF16, F16], [F32, None])
)
def test_a_product_is_rounded_once(
    dtype: torch.dtype, shape: tuple[int, int], rows: int, wide: torch.dtype | None
) -> None:
    """A product is the exact one rounded, and after the addition of a bias rounded once more."""
    x, weight, bias = numbers(rows, shape[1], seed=1, dtype=dtype), numbers(*shape, dtype=dtype), numbers(shape[0])
    blocks = Blocks.of(weight)
    found = product(x, blocks, wide=wide or dtype)
    exact, terms = x.double() @ weight.double().t(), x.double().abs() @ weight.double().abs().t()
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert found.shape == (rows, shape[0])
    if wide or rows <= 8:  # what torch makes of many rows in 16 bit is its own affair
        assert roundings_off(found, exact, terms) <= 1.01
        added = product(x, blocks, bias.to(dtype), wide=wide or dtype)
        between = torch.finfo(dtype).eps / 2 * exact.abs()
        error = (added.double() - (exact + bias.to(dtype).double())).abs()
        once_more = torch.finfo(dtype).eps / 2 * (exact.abs() + bias.double().abs()).clamp(min=1e-3)
        assert bool((error <= 1.01 * (between + once_more) + 1e-6 * terms).all())


@pytest.mark.parametrize("rows", [1, 9], ids=["few-rows", "many-rows"])
def test_activations_in_float32_keep_their_dtype(rows: int) -> None:
    """A float32 input by rounded blocks gives float32, to the precision of the blocks."""
    x, weight = numbers(rows, 700, dtype=F32), numbers(1000, 700, dtype=F32)
    found, exact = product(x, Blocks.of(weight, BF16)), x.double() @ weight.double().t()
    assert found.dtype == F32
    assert float((found.double() - exact).norm() / exact.norm()) < torch.finfo(BF16).eps


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 64), (2, 3, 2, 64), (2, 0, 64)], ids=str)
def test_inputs_of_any_rank(shape: tuple[int, ...]) -> None:
    """All dimensions but the last one are kept."""
    weight, x = numbers(300, 64), numbers(*shape, seed=1)
    found = product(x, Blocks.of(weight))
    assert found.shape == (*shape[:-1], 300)
    assert torch.allclose(found.float(), x.float() @ weight.float().t(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("x", [numbers(64, 3).t(), numbers(3, 128)[:, ::2], numbers(1, 64).expand(3, 64)], ids=str)
def test_inputs_of_any_strides(x: Tensor) -> None:
    """A view gives what its contiguous copy gives."""
    blocks = Blocks.of(numbers(300, 64))
    assert torch.equal(product(x, blocks), product(x.contiguous(), blocks))


def test_an_input_of_another_width_is_an_error() -> None:
    """What does not fit is refused, with few rows and with many."""
    blocks = Blocks.of(numbers(300, 64))
    for rows in (1, 2, 20):
        with pytest.raises((RuntimeError, ValueError)):
            product(numbers(rows, 32), blocks)


@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("rows", [1, 9], ids=["few-rows", "many-rows"])
def test_what_is_not_finite_stays_in_its_row(rows: int, special: float) -> None:
    """One number that is not finite spoils its own row, as in torch, and no other."""
    weight, x = numbers(300, 64), numbers(rows + 1, 64, seed=1)[:rows]
    x[0, 5] = special
    expected = torch.nn.functional.linear(x, weight)
    assert torch.equal(product(x, Blocks.of(weight)).isfinite(), expected.isfinite())


@pytest.mark.parametrize("rows", [1, 9], ids=["few-rows", "many-rows"])
def test_a_default_device_changes_nothing(rows: int) -> None:
    """What is made on the way lies on the CPU, also where tensors are made elsewhere by default."""
    weight, x = numbers(700, 131), numbers(rows, 131, seed=1)  # a width that no other test has
    blocks = Blocks.of(weight)
    with torch.device("meta"):
        found = product(x, blocks)
    assert torch.equal(found, product(x, blocks))


@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=["int64", "int32"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3), (1, 2, 2)], ids=str)
def test_rows_are_those_of_an_embedding(shape: tuple[int, ...], index: torch.dtype) -> None:
    """Rows are looked up bit for bit."""
    weight = numbers(700, 33)
    which = torch.randint(0, 700, shape, dtype=index)
    assert torch.equal(Blocks.of(weight).rows(which), torch.nn.functional.embedding(which, weight))


@pytest.mark.parametrize("number", [-1, 300, 511], ids=["negative", "the-first-after", "in-the-padding"])
def test_a_row_that_is_not_there_is_an_error(number: int) -> None:
    """An index outside the weight is refused in torch's words, although the block goes on."""
    with pytest.raises(IndexError, match="index out of range in self"):
        Blocks.of(numbers(300, 64)).rows(torch.tensor([0, number]))


@pytest.mark.parametrize(
    ("weight", "can"),
    [
        pytest.param(numbers(512, 512), True, id="large"),
        pytest.param(numbers(512, 512, dtype=F16), True, id="float16"),
        pytest.param(numbers(500, 512), False, id="small"),
        pytest.param(numbers(512, 1024).t(), False, id="not-contiguous"),
        pytest.param(numbers(512, 512, dtype=F32).double(), False, id="float64"),
        pytest.param(numbers(2, 512, 512), False, id="three-dimensions"),
        pytest.param(torch.empty(512, 512, dtype=BF16, device="meta"), False, id="on-another-device"),
    ],
)
def test_which_weights_can_be_laid_out(weight: Tensor, can: bool) -> None:
    """Large matrices on the CPU in a dtype that models are stored in."""
    assert can_lay_out(weight) == can
