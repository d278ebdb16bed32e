"""Calls of a program have the bits of the same functions called one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from safe_dtype.facts import CODES, Dtype, plainly
from safe_dtype.kernels.attention_row import attend, attention_of_row, can_attend
from safe_dtype.kernels.norm_rows import norm_of_rows, normalize_rows
from safe_dtype.kernels.programs.call import At, KernelCall
from safe_dtype.kernels.programs.kernel_program import Program, can_run
from safe_dtype.kernels.programs.row_parts import can_add, copy_of_heads, sum_of
from safe_dtype.kernels.rotary import turn, turn_of_heads
from safe_dtype.kernels.row_product import (
    multiply_rows_by_each,
    multiply_rows_gated,
    product_of_rows,
)
from safe_dtype.kernels.target import target
from safe_dtype.kernels.threads import threads_now
from safe_dtype.kernels.weights.coded_weight import CodedWeight

pytest.importorskip("llvmlite", reason="kernels are compiled by llvmlite, of the extra `fast`")

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [BF16, F16, F32]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """A dtype that code is compiled for here."""
    kind: torch.dtype = request.param
    cpu = target()
    if cpu is None or (kind is F16 and not cpu.halves):
        pytest.skip("this CPU has no instructions for float16")
    assert can_run()
    assert can_add(kind)
    return kind


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return seeded numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ran(calls: list[KernelCall], threads: int | None = None, **begins: Tensor | int) -> None:
    """Run a program of calls with tensors and numbers by their names."""
    program = Program(calls, threads_now() if threads is None else threads)
    program.run({name: one if isinstance(one, int) else one.data_ptr() for name, one in begins.items()})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 3])
def test_norm_product_and_sum(dtype: torch.dtype, rows: int, threads: int) -> None:
    """Each call sees what the one before has written."""
    x, weight, by = (numbers(n, 96, dtype=dtype, seed=n) for n in (rows, 1, 700))
    bias, other = numbers(700, dtype=dtype, seed=7), numbers(rows, 700, dtype=dtype, seed=8)
    normed, product, result = torch.empty_like(x), torch.empty_like(other), torch.empty_like(other)
    wide = torch.empty(rows, 96)
    calls = [
        norm_of_rows(At("x"), At("normed"), weight.data_ptr(), 1e-6, (rows, 96), dtype),
        product_of_rows(At("normed"), At("wide"), [((by, bias, None), At("product"))], (dtype, rows, threads)),
        sum_of(At("product"), At("other"), At("result"), rows * 700, dtype),
    ]
    ran(calls, threads, x=x, normed=normed, wide=wide, product=product, other=other, result=result)
    expected = multiply_rows_by_each(normalize_rows(x, weight[0], 1e-6), [(by, bias, None)])[0] + other
    assert torch.equal(result, expected)


def test_products_of_one_pass(dtype: torch.dtype) -> None:
    """Several weights of one pass have products of their own, and a gated one is in the first's place."""
    x = numbers(2, 128, dtype=dtype)
    weights = [(numbers(n, 128, dtype=dtype, seed=n), None, None) for n in (320, 64, 320)]
    products = [torch.empty(2, len(weight), dtype=dtype) for weight, _, _ in weights]
    wide = torch.empty(2, 128)
    places = [At(f"product {number}") for number in range(3)]
    names = {f"product {number}": one for number, one in enumerate(products)}
    kind = (dtype, 2, 2)
    ran([product_of_rows(At("x"), At("wide"), list(zip(weights, places, strict=True)), kind)], x=x, wide=wide, **names)
    for product, expected in zip(products, multiply_rows_by_each(x, weights), strict=True):
        assert torch.equal(product, expected)
    pair = [weights[0], weights[2]]
    gated = product_of_rows(
        At("x"), At("wide"), list(zip(pair, (places[0], places[2]), strict=True)), kind, is_gated=True
    )
    ran([gated], x=x, wide=wide, **names)
    assert torch.equal(products[0], multiply_rows_gated(x, *pair))


@pytest.mark.parametrize("codes", CODES, ids=str)
def test_products_by_codes(dtype: torch.dtype, codes: Dtype) -> None:
    """A product by codes of 8 or 4 bits has the bits that it has outside of a program."""
    x, y, wide = numbers(2, 128, dtype=dtype), torch.empty(2, 320, dtype=dtype), torch.empty(2, 128)
    held = CodedWeight.of(numbers(320, 128, dtype=dtype, seed=1), plainly(codes))
    assert held is not None
    weighed = (held.tensor, None, held.scales)
    ran([product_of_rows(At("x"), At("wide"), [(weighed, At("y"))], (dtype, 2, 2))], x=x, wide=wide, y=y)
    assert torch.equal(y, multiply_rows_by_each(x, [weighed])[0])


def test_heads_that_are_turned_into_a_cache(dtype: torch.dtype) -> None:
    """Keys are written behind others, at the strides of a larger tensor, and nothing beside them."""
    batch, heads, shared, width, room = 2, 4, 2, 32, 5
    query, key = (numbers(batch, 1, count, width, dtype=dtype, seed=count) for count in (heads, shared))
    cos, sin = (numbers(batch, 1, width, dtype=dtype, seed=seed) for seed in (5, 6))
    cache = torch.zeros(batch, shared, room, width, dtype=dtype)
    turned = torch.empty(batch, heads, 1, width, dtype=dtype)
    strides = cache.stride()
    call = turn_of_heads(
        [
            (At("query"), At("turned"), heads, (heads * width, width, width)),
            (At("key"), At("cache", 3 * width * cache.itemsize), shared, (At("batch"), At("head"), width)),
        ],
        (At("cos"), width, width), (At("sin"), width, width), (batch, 1, width), dtype,
    )  # fmt: skip
    ran([call], query=query, key=key, cos=cos, sin=sin, turned=turned, cache=cache, batch=strides[0], head=strides[1])
    expected = turn(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    assert torch.equal(turned, expected[0])
    assert torch.equal(cache[:, :, 3:4], expected[1])
    assert not cache[:, :, [0, 1, 2, 4]].any()


def test_copies_of_heads(dtype: torch.dtype) -> None:
    """Numbers of heads are those of before in their new places, infinite ones and the least ones, too."""
    x = numbers(3, 2, 40, dtype=dtype)
    x[0, 0, :4] = torch.tensor([torch.inf, -torch.inf, -0.0, torch.finfo(dtype).smallest_normal / 4])
    y = torch.zeros(3, 2, 6, 40, dtype=dtype)
    behind = At("y", 4 * 40 * y.itemsize)
    ran([copy_of_heads(At("x"), behind, (3, 2, 40), (80, 40, *y.stride()[:2]), dtype)], x=x, y=y)
    assert torch.equal(y[:, :, 4], x)
    assert not y[:, :, [0, 1, 2, 3, 5]].any()


@pytest.mark.parametrize("heads", [2, 8])
def test_attention_over_a_cache(heads: int) -> None:
    """One row a head sees as many positions as a run says."""
    batch, shared, width, room = 2, 2, 64, 50
    query = numbers(batch, heads, 1, width, dtype=BF16)
    keys, values = (numbers(batch, shared, room, width, dtype=BF16, seed=seed) for seed in (1, 2))
    output, wide, scores = torch.empty(batch, heads, width, dtype=BF16), torch.empty(4096), torch.empty(4096)
    call = attention_of_row(
        (At("query"), At("keys"), At("values"), At("output"), At("wide"), At("scores")),
        (*keys.stride()[:3], *values.stride()[:3]), At("positions"), (batch, heads, shared, width), 0.1, BF16,
    )  # fmt: skip
    for positions in (33, 50):
        shown = [one[:, :, :positions] for one in (keys, values)]
        assert can_attend(query, *shown)
        ran(
            [call], query=query, keys=keys, values=values, output=output, wide=wide, scores=scores, positions=positions,
        )  # fmt: skip
        assert torch.equal(output, attend(query, *shown, 0.1)[:, 0])


def test_dtypes_without_code() -> None:
    """What is not compiled for a dtype says so when it is asked for."""
    assert not can_add(torch.float64)
    with pytest.raises(RuntimeError, match="float64"):
        sum_of(At("a"), At("b"), At("y"), 8, torch.float64)
