"""Attention in chunks has the numbers of torch's, whatever the rows see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from safe_dtype.numerics.attention_in_chunks import CHUNK, attention_in_chunks
from safe_dtype.numerics.onednn_product import has_product

pytestmark = pytest.mark.skipif(not has_product(), reason="torch was built without oneDNN")

# batch, heads, heads that share, rows, positions, width, width of values
SHAPES = [(1, 4, 4, CHUNK, CHUNK, 64, 64), (2, 8, 2, 130, 130, 16, 24), (1, 4, 1, 257, 400, 32, 32)]
KINDS = ["all", "causal", "after-others", "padded", "window", "blind", "nothing"]


def mask_of(kind: str, batch: int, rows: int, positions: int) -> Tensor | None:
    """Return what is seen of a kind."""
    before = torch.ones(rows, positions, dtype=torch.bool).tril(positions - rows).expand(batch, 1, rows, positions)
    if kind == "after-others":
        return before[:1]
    mask = before.clone()
    if kind == "padded":
        mask[-1, :, :, :9] = False
    if kind == "window":
        mask &= torch.ones(rows, positions, dtype=torch.bool).triu(positions - rows - 40)
    if kind == "blind":
        mask[-1, :, 3:90] = False
    if kind == "nothing":
        mask[-1, :, :CHUNK] = False
    return None if kind in ("all", "causal") else mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_numbers(dtype: torch.dtype, shape: tuple[int, ...], kind: str) -> None:
    """A result is as far from the exact one as one rounding, and no further than torch's own kernel by more than that."""
    batch, heads, shared, rows, positions, width, of_values = shape
    made = torch.Generator().manual_seed(0)
    query = torch.randn(batch, rows, heads, width, generator=made).to(dtype).transpose(1, 2)
    key = torch.randn(batch, shared, positions, width, generator=made).to(dtype)
    value = torch.randn(batch, shared, positions, of_values, generator=made).to(dtype)
    mask, causal = mask_of(kind, batch, rows, positions), kind == "causal"
    repeated = [one.repeat_interleave(heads // shared, 1) for one in (key, value)]
    exact = F.scaled_dot_product_attention(
        query.double(), *(one.double() for one in repeated), attn_mask=mask, is_causal=causal, scale=0.3
    ).transpose(1, 2)
    result = attention_in_chunks(query, key, value, mask, is_causal=causal, scale=0.3)
    assert (result.dtype, result.shape) == (dtype, (batch, rows, heads, of_values))
    assert result.is_contiguous()
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 4e-6
    assert ((result.double() - exact).abs() <= allowed).all()


def test_what_is_not_finite_shows() -> None:
    """A row that meets NaN is NaN, as in torch; one that sees nothing of it is not."""
    query, key, value = (torch.randn(1, 1, 140, 16) for _ in range(3))
    value[0, 0, 137] = torch.nan
    result = attention_in_chunks(query, key, value, is_causal=True)
    assert result[0, 137:].isnan().all()
    assert result[0, :128].isfinite().all()
