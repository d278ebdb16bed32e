"""Attention of one row, compiled, is that of float64 rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it

from safe_dtype.kernels.attention_row import attend, can_attend

pytest.importorskip("llvmlite", reason="attention is compiled by llvmlite, of the extra `fast`")

SHAPES = [(1, 16, 8, 128, 65), (2, 4, 4, 32, 33), (3, 8, 1, 64, 100), (1, 6, 2, 96, 31), (1, 2, 1, 256, 700)]


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return query, keys and values, the latter as views of a tensor with room."""
    batch, heads, shared, width, positions = shape
    torch.manual_seed(0)
    room = torch.randn(2, batch, shared, positions + 9, width).to(dtype)
    return [3 * torch.randn(batch, heads, 1, width).to(dtype), *(one[:, :, 4 : positions + 4] for one in room)]


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the same computed in float64."""
    wide = (query.double(), key.double(), value.double())
    return F.scaled_dot_product_attention(*wide, scale=0.2, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Every number is that of float64 within one rounding, and the same at each call."""
    query, key, value = operands(shape, dtype)
    assert can_attend(query, key, value)
    mine, right = attend(query, key, value, 0.2), exact(query, key, value)
    assert mine.shape == right.shape
    assert mine.dtype is dtype
    allowed = torch.finfo(dtype).eps / 2 * right.abs() + 4e-6 * value.abs().max()
    assert bool(((mine - right).abs() <= allowed).all())
    assert torch.equal(mine, attend(query, key, value, 0.2))


def test_ends_of_the_range() -> None:
    """Scores far apart leave one value; NaN comes out of NaN, and Inf too."""
    query, key, value = operands((1, 2, 1, 64, 64), torch.bfloat16)
    key = key.clone()
    key[0, 0, 9] = 40 * query[0, 0, 0]
    assert torch.equal(attend(query, key, value, 1.0)[0, 0, 0], value[0, 0, 9])
    for spoiled in (float("nan"), float("inf")):
        spoiled_key, spoiled_value = key.clone(), value.clone()
        spoiled_key[0, 0, 3, 5] = spoiled
        spoiled_value[0, 0, 9, 5] = spoiled
        assert bool(attend(query, spoiled_key, value, 1.0).isnan().any())
        assert not bool(attend(query, key, spoiled_value, 1.0)[0, 0, 0, 5].isfinite())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nothing_in_sight(dtype: torch.dtype) -> None:
    """Where all scores of a head are -Inf it is zero, and NaN among them is seen, both as in torch's kernel."""
    query, key, value = operands((1, 4, 2, 64, 70), dtype)
    key, query = key.clone(), query.abs() + 1
    key[0, 0] = 0
    key[0, 0, :, 5] = float("-inf")
    for spoiled in (False, True):
        if spoiled:
            key[0, 0, 40, 6] = float("nan")
        mine, right = attend(query, key, value, 0.2), exact(query, key, value)
        torch_has = F.scaled_dot_product_attention(query, key, value, scale=0.2, enable_gqa=True).transpose(1, 2)
        assert bool(torch_has[0, 0, :2].isnan().all() if spoiled else (torch_has[0, 0, :2] == 0).all())
        assert torch.equal(mine[0, 0, :2].nan_to_num(7), torch_has[0, 0, :2].nan_to_num(7))
        assert bool(((mine - right)[0, 0, 2:].abs() <= 0.01 * value.abs().max()).all())


def test_what_is_not_compiled() -> None:
    """Odd widths, other dtypes, more heads than eight to one, and keys that do not lie in rows."""
    for shape in ((1, 4, 2, 40, 64), (1, 9, 1, 64, 64)):
        assert not can_attend(*operands(shape, torch.bfloat16))
    query, key, value = operands((1, 4, 2, 64, 64), torch.bfloat16)
    assert not can_attend(query.float(), key.float(), value.float())
    assert not can_attend(query, key.mT.contiguous().mT, value)
