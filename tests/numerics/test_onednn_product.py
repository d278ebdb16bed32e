"""Products of many rows in float32 by oneDNN have the numbers of torch's, and leave to torch what is torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from safe_dtype.numerics import onednn_product
from safe_dtype.numerics.by_onednn import by_onednn
from safe_dtype.numerics.onednn import onednn_off
from safe_dtype.numerics.onednn_product import has_product, linear_by_onednn

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
pytestmark = pytest.mark.skipif(not has_product(), reason="torch was built without oneDNN")


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Calls:
    """How often oneDNN was called."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Count."""
    counts, product = Calls(), onednn_product.product_by_onednn

    def counting(*args: Any) -> Tensor:
        counts.count += 1
        return product(*args)

    monkeypatch.setattr(onednn_product, "product_by_onednn", counting)
    return counts


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("lies", ["plainly", "transposed", "in-a-larger-one"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", [(1024,), (17, 1024), (2, 3, 1024)], ids=str)
def test_numbers(shape: tuple[int, ...], dtype: torch.dtype, lies: str, *, bias: bool) -> None:
    """A result is that of the exact product, rounded once, wherever the weight lies, of two pieces and a part of one."""
    x, weight = numbers(*shape, dtype=dtype), numbers(4500, 1024, seed=1, dtype=dtype)
    if lies == "transposed":
        weight = weight.t().contiguous().t()
    if lies == "in-a-larger-one":
        weight = torch.cat((weight, weight), 1)[:, :1024]
    added = numbers(4500, seed=2, dtype=dtype) if bias else None
    exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
    result = linear_by_onednn(x, weight, added)
    assert result is not None
    assert (result.dtype, result.shape) == (dtype, exact.shape)
    allowed = (torch.finfo(dtype).eps / 2 + 4e-6) * exact.abs() + 4e-4
    assert ((result.double() - exact).abs() <= allowed).all()


def test_in_float32_already(calls: Calls) -> None:
    """Products of float32 weights are oneDNN's in the block from so many rows on, and torch's otherwise."""
    layer, rows = nn.Linear(64, 32), numbers(40, 64)
    with torch.no_grad(), by_onednn(when=lambda _family, count: count >= 16):
        results = [layer(rows), rows @ layer.weight.t() + layer.bias, torch.addmm(layer.bias, rows, layer.weight.t())]
        assert calls.count == 3
        layer(rows[:15])
        F.scaled_dot_product_attention(*(rows.view(1, 1, 40, 64),) * 3)
        torch.bmm(rows.view(1, 40, 64), rows.view(1, 64, 40))
        assert calls.count == 3
        for result in results:
            torch.testing.assert_close(
                result, F.linear(rows.double(), layer.weight.double(), layer.bias.double()).float()
            )


def test_left_to_torch(calls: Calls) -> None:
    """Gradients, transforms, autocast and a oneDNN that is off are computed by torch."""
    layer, x = nn.Linear(64, 32), numbers(40, 64)
    with by_onednn():
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            torch.vmap(layer)(x[:, None])
            with onednn_off():
                layer(x)
            with torch.autocast("cpu", BF16):
                assert layer(x).dtype == BF16
            layer.half().float()(x.double()[:0].float())  # no rows
            assert calls.count == 0
            copy.deepcopy(layer)(x)
            assert calls.count == 1
