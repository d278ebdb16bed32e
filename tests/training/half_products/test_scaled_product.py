"""A scaled product is the plain one of float16, to the bit, and goes on where that one ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from safe_dtype.training.half_products.scaled_product import scaled_product

IN, OUT = 33, 21


def ignore(_name: str, _numbers: Tensor) -> None:
    """Take note of nothing."""


def operands(*shape: int, bias: bool = True) -> list[Any]:
    """Return an input, a weight and a bias that are to be trained."""
    torch.manual_seed(0)
    tensors = [torch.randn(*shape, IN), torch.randn(OUT, IN) / 6, torch.randn(OUT)]
    return [tensor.requires_grad_() for tensor in (tensors if bias else tensors[:2])]


def plain(tensors: list[Any], dtype: torch.dtype = torch.float16) -> Tensor:
    """Return the product under autocast."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return F.linear(*tensors).float()


def scaled(tensors: list[Any]) -> Tensor:
    """Return the scaled product."""
    x, weight, *bias = tensors
    with torch.autocast("cpu", torch.float16):
        return scaled_product(F.linear, x, weight, bias[0] if bias else None, ignore)


def gradients(output: Tensor, tensors: list[Any], size: float = 1.0) -> list[Tensor]:
    """Return the gradients of all operands."""
    torch.manual_seed(1)
    return list(torch.autograd.grad(output, tensors, torch.randn_like(output) * size))


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error, as a part of the largest number."""
    return float(((found - expected).abs().amax() / expected.abs().amax()).detach())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 64)])
def test_every_bit_is_that_of_float16(shape: tuple[int, ...], bias: bool) -> None:
    """Output and gradients, where nothing overflows."""
    tensors = operands(*shape, bias=bias)
    ours, theirs = scaled(tensors), plain(tensors)
    assert torch.equal(ours, theirs)
    assert ours.dtype == torch.float32
    for mine, other in zip(gradients(ours, tensors), gradients(theirs, tensors), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("of_input", "of_weight", "of_gradient"),
    [
        pytest.param(1e4, 1e3, 1.0, id="output"),
        pytest.param(1e7, 1.0, 1.0, id="input"),
        pytest.param(1.0, 1e6, 1.0, id="weight"),
        pytest.param(1.0, 1.0, 1e9, id="gradient of the output"),
        pytest.param(1e4, 1.0, 1e3, id="gradient of the weight"),
        pytest.param(1.0, 1e4, 1e4, id="gradient of the input"),
        pytest.param(1e-9, 1.0, 1e-12, id="too small for float16"),
    ],
)
def test_as_exact_as_float16_where_float16_ends(of_input: float, of_weight: float, of_gradient: float) -> None:
    """Against the product in float32; plain float16 has not one right number there."""
    tensors = operands(4, 8)
    with torch.no_grad():
        for tensor, size in zip(tensors, (of_input, of_weight, of_input * of_weight), strict=True):
            tensor *= size
    ours, exact = scaled(tensors), plain(tensors, torch.float32)
    assert error(ours, exact) < 2**-10
    for mine, other in zip(gradients(ours, tensors, of_gradient), gradients(exact, tensors, of_gradient), strict=True):
        assert error(mine, other) < 2**-10
    half = plain(tensors)
    parts = [half, *gradients(half, tensors, of_gradient)]
    expected = [exact, *gradients(plain(tensors, torch.float32), tensors, of_gradient)]
    assert any(not error(part, other) < 0.1 for part, other in zip(parts, expected, strict=True))


def test_no_sum_overflows_however_long() -> None:
    """All numbers alike, and all of one sign: the worst that rows, columns and the bias can come to."""
    x, weight, bias = torch.full((40_000, 64), 3e4), torch.full((8, 64), 2e3), torch.full((8,), 6e4)
    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    output = scaled(tensors)
    assert error(output, plain(tensors, torch.float32)) < 2**-10
    found = torch.autograd.grad(output, tensors, torch.full_like(output, 1e6))
    assert [float(tensor.mean()) for tensor in found] == pytest.approx([8 * 2e9, 40_000 * 3e10, 4e10], rel=2**-9)


def test_what_is_not_finite_stays_so() -> None:
    """A NaN or Inf is not scaled away."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        tensors = operands(4)
        with torch.no_grad():
            tensors[0][1, 1] = bad
        assert not scaled(tensors).isfinite().any()
        tensors = operands(4)
        output = scaled(tensors)
        gradient = torch.zeros_like(output)
        gradient[0, 0] = bad
        assert not any(part.isfinite().all() for part in torch.autograd.grad(output, tensors, gradient))


def test_zeros() -> None:
    """Have no scale, and stay zeros."""
    tensors = [torch.zeros_like(tensor).requires_grad_() for tensor in operands(4)]
    output = scaled(tensors)
    assert not output.any()
    assert not any(part.any() for part in torch.autograd.grad(output, tensors, torch.zeros_like(output)))


def test_second_backward_pass_through_one_graph() -> None:
    """Each backward pass has the scale of its own gradients."""
    tensors = operands(4)
    output = scaled(tensors)
    large = torch.autograd.grad(output.sum() * 1e8, tensors, retain_graph=True)
    small = torch.autograd.grad(output.sum(), tensors)
    for some, others in zip(large, small, strict=True):
        torch.testing.assert_close(some / 1e8, others, rtol=2**-9, atol=1e-6)
