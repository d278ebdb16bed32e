"""Products whose operands are cast on the way, a large weight in pieces."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from safe_dtype.numerics.cast_products import cast_bmm, cast_grouped_mm, cast_linear

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PIECE = 2**21  # elements


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


WEIGHT = numbers(4500, 1024)  # two whole pieces, and a part of one
BIAS = numbers(4500, seed=1)


def peak_of(call: Callable[[], object]) -> int:
    """Return how many bytes more than before lie in memory at the worst moment of a call."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{name}:")[1].split()[0])


@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no-bias"])
@pytest.mark.parametrize("shape", [(1024,), (1, 1024), (0, 1024), (17, 1024), (2, 3, 1024), (2, 0, 1024)], ids=str)
def test_pieces_have_the_bits_of_the_weight_cast_whole(shape: tuple[int, ...], bias: Tensor | None) -> None:
    """In float32 the pieces give what the same pieces of a float32 weight give, and the shape of `F.linear`."""
    x, wide = numbers(*shape, seed=2), WEIGHT.float()
    rows = PIECE // 1024
    parts = [x.float().reshape(-1, 1024).mm(wide[i : i + rows].t()) for i in range(0, 4500, rows)]
    expected = torch.cat(parts, 1) + (0 if bias is None else bias.float())
    found = cast_linear(x, WEIGHT, bias, F32)
    assert found.dtype == F32
    assert torch.equal(found, expected.view(*shape[:-1], 4500))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(WEIGHT, id="contiguous"),
        pytest.param(WEIGHT.t().contiguous().t(), id="transposed"),
        pytest.param(numbers(4500, 2048)[:, ::2], id="strided"),
        pytest.param(WEIGHT[:5], id="small"),
        pytest.param(numbers(3, PIECE + 8), id="one-row-is-a-piece"),
    ],
)
def test_any_layout_in_any_dtype(weight: Tensor, dtype: torch.dtype) -> None:
    """The product is the exact one, to the precision of the dtype it is computed in."""
    x = numbers(3, weight.shape[1], seed=3)
    found, exact = cast_linear(x, weight, None, dtype), x.double() @ weight.double().t()
    assert found.dtype == dtype
    assert float((found.double() - exact).norm() / exact.norm()) < 2 * max(torch.finfo(dtype).eps, 1e-5)


def test_a_gradient_flows_through_a_large_weight() -> None:
    """Where a gradient is asked for the weight is cast whole, and gets one in its own dtype."""
    weight, x = WEIGHT.clone().requires_grad_(), numbers(3, 1024, seed=3)
    cast_linear(x, weight, None, F32).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, x.float().sum(0).to(BF16).expand(4500, 1024))


def test_a_weight_that_needs_no_gradient_now() -> None:
    """Under `torch.no_grad` a parameter is cut as any tensor."""
    weight, x = torch.nn.Parameter(WEIGHT), numbers(3, 1024, seed=3)
    with torch.no_grad():
        assert torch.equal(cast_linear(x, weight, None, F32), cast_linear(x, WEIGHT, None, F32))


def test_a_bias_of_another_shape_is_broadcast() -> None:
    """A bias that is no vector is added as torch adds it."""
    x, bias = numbers(3, 1024, seed=3), numbers(3, 4500, seed=4)
    assert torch.allclose(cast_linear(x, WEIGHT, bias, F32), F.linear(x.float(), WEIGHT.float()) + bias, atol=1e-3)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_no_copy_of_the_whole_weight_is_made() -> None:
    """A bfloat16 weight of 40 million elements needs less than 16 MB beside it: cast whole it would be 160."""
    weight = torch.ones(40_000, 1000, dtype=BF16)
    x = torch.ones(4, 1000, dtype=BF16)
    cast_linear(x, weight[:4000], None, F32)  # what the library's products need once
    gc.collect()
    assert peak_of(lambda: cast_linear(x, weight, None, F32)) < 16e6
    assert peak_of(lambda: F.linear(x.float(), weight.float())) > 150e6


@pytest.mark.parametrize("count", [1, 5, 0], ids=["one", "five", "none"])
def test_batches(count: int) -> None:
    """A batch whose second operand is large is multiplied some matrices at a time, to the same bits."""
    a, b = numbers(count, 3, 1024), numbers(count, 1024, 1500, seed=5)
    expected = [a[i : i + 1].float().bmm(b[i : i + 1].float()) for i in range(count)]
    found = cast_bmm(a, b, F32)
    assert found.shape == (count, 3, 1500)
    assert torch.equal(found, torch.cat(expected) if expected else found)


def test_batches_that_do_not_match_are_an_error() -> None:
    """Two batches of different lengths are refused, as by torch."""
    with pytest.raises(RuntimeError):
        cast_bmm(numbers(2, 3, 1024), numbers(5, 1024, 1500), F32)


@pytest.mark.parametrize("ends", [[2, 5, 6], [0, 0, 6], [6, 6, 6], [0, 3, 4]], ids=str)
def test_experts(ends: list[int]) -> None:
    """Each expert multiplies its own rows; rows of nobody are zero."""
    x, weight = numbers(6, 32), numbers(3, 32, 8, seed=6)
    found = cast_grouped_mm(x, weight, torch.tensor(ends, dtype=torch.int32), F32)
    expert = [next((e for e, end in enumerate(ends) if row < end), None) for row in range(6)]
    rows = [torch.zeros(8) if e is None else x[i].float() @ weight[e].float() for i, e in enumerate(expert)]
    assert torch.allclose(found, torch.stack(rows), atol=1e-5)


def test_experts_get_gradients() -> None:
    """A gradient reaches the experts that had rows, and is zero for the others."""
    x, weight = numbers(4, 32), numbers(3, 32, 8, seed=6).requires_grad_()
    cast_grouped_mm(x, weight, torch.tensor([2, 2, 4]), F32).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum((1, 2)).ne(0).tolist() == [True, False, True]
