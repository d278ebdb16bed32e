"""Attention of one row by rows of shared heads is torch's, within one rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch.overrides import TorchFunctionMode

from safe_dtype.decoding import attention_by_rows, is_quicker_by_rows

SHAPES = {"grouped": (2, 8, 2, 16, 70), "one-for-all": (1, 4, 1, 32, 33), "each-its-own": (2, 4, 4, 8, 40)}


def operands(shape: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return query, keys and values, the latter as views of a tensor with room."""
    batch, heads, shared, width, positions = SHAPES[shape]
    made = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, 1, width, generator=made).to(dtype)
    room = torch.randn(2, batch, shared, positions + 9, width, generator=made).to(dtype)
    return [query, *(one[:, :, :positions] for one in room)]


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the same computed in float64."""
    wide = (query.double(), key.double(), value.double())
    bias = mask.double() if mask is not None and mask.is_floating_point() else mask
    found = F.scaled_dot_product_attention(*wide, attn_mask=bias, scale=0.3, enable_gqa=True)
    return found.transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_within_one_rounding(shape: str, dtype: torch.dtype) -> None:
    """The result is no farther from float64 than one rounding of the largest of it, and no more than torch's own twice."""
    query, key, value = operands(shape, dtype)
    assert is_quicker_by_rows(query, key, value, None)
    mine = attention_by_rows(query, key, value, None, 0.3)
    assert mine.is_contiguous()
    right = exact(query, key, value, None)
    plain = F.scaled_dot_product_attention(query, key, value, scale=0.3, enable_gqa=True).transpose(1, 2)
    assert mine.shape == right.shape
    assert mine.dtype is dtype
    error = (mine - right).abs().max()
    assert error <= torch.finfo(dtype).eps * right.abs().max()
    assert error <= 2 * (plain - right).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", ["grouped", "each-its-own"])
@pytest.mark.parametrize("kind", ["bool", "added", "least", "by-head"])
def test_masks(kind: str, shape: str, dtype: torch.dtype) -> None:
    """What a mask hides does not count, whatever kind of mask: bools, -Inf, the least number, one for each head."""
    query, key, value = operands(shape, dtype)
    hidden = torch.zeros(2, query.shape[1] if kind == "by-head" else 1, 1, key.shape[2], dtype=torch.bool)
    hidden[0, 0, :, :7] = True
    hidden[1, -1, :, 30:] = True
    hiding = torch.finfo(dtype).min if kind == "least" else -torch.inf
    mask = ~hidden if kind == "bool" else torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, hiding)
    if kind == "by-head" and shape == "grouped":
        assert not is_quicker_by_rows(query, key, value, mask)
        return
    assert is_quicker_by_rows(query, key, value, mask)
    mine, right = attention_by_rows(query, key, value, mask, 0.3), exact(query, key, value, mask)
    assert (mine - right).abs().max() <= torch.finfo(dtype).eps * right.abs().max()


def test_left_to_torch() -> None:
    """Several rows, few positions, float32, gradients, and shapes that differ."""
    query, key, value = operands("grouped", torch.bfloat16)
    assert not is_quicker_by_rows(query.expand(2, 8, 3, 16), key, value, None)
    assert not is_quicker_by_rows(query, key[:, :, :20], value[:, :, :20], None)
    assert not is_quicker_by_rows(query.float(), key.float(), value.float(), None)
    assert not is_quicker_by_rows(query, key.float(), value, None)
    assert not is_quicker_by_rows(query.clone().requires_grad_(), key, value, None)
    assert not is_quicker_by_rows(query, key, value[..., :8], None)
    assert not is_quicker_by_rows(query[:1], key, value, None)


def test_whoever_looks_on_sees_torchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mode of torch and a patch of its function are asked: they count, write down or replace attention."""

    class _Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    query, key, value = operands("grouped", torch.bfloat16)
    with _Watch():
        assert not is_quicker_by_rows(query, key, value, None)
    with torch.device("cpu"):
        assert is_quicker_by_rows(query, key, value, None)
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: attention(*args, **kwargs))
    assert not is_quicker_by_rows(query, key, value, None)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_numbers_that_lie_negated(which: int) -> None:
    """What torch keeps in memory with the other sign counts as what it is."""
    made = torch.Generator().manual_seed(0)
    plain = [torch.randn(1, 2, rows, 32, generator=made).bfloat16() for rows in (1, 40, 40)]
    other = [torch._neg_view(-one) if number == which else one for number, one in enumerate(plain)]
    assert torch.equal(attention_by_rows(*other, None, None), attention_by_rows(*plain, None, None))


def test_without_heads() -> None:
    """Attention of no head is torch's."""
    query, key, value = operands("grouped", torch.bfloat16)
    assert not is_quicker_by_rows(query[:, :0], key[:, :0], value[:, :0], None)
    assert not is_quicker_by_rows(query, key[:, :0], value[:, :0], None)
