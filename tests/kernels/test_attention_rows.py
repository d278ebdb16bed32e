"""Attention of many rows, compiled, has the numbers of torch's, whatever the rows see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from safe_dtype.kernels.attention_rows import attend_rows, can_attend_rows

pytest.importorskip("llvmlite", reason="kernels are compiled by llvmlite, of the extra `fast`")

# batch, heads, heads that share, rows, positions, width, width of values
SHAPES = [
    (1, 4, 4, 128, 128, 64, 64),
    (2, 8, 2, 130, 130, 16, 24),
    (1, 12, 1, 95, 150, 33, 21),
    (1, 2, 2, 3, 70, 8, 4),
]
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
        mask[-1, :, :128] = False
    return None if kind in ("all", "causal") else mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_numbers(dtype: torch.dtype, shape: tuple[int, ...], kind: str) -> None:
    """A result is as far from the exact one as one rounding, and no further than torch's own kernel by more than that."""
    if not can_attend_rows(dtype):
        pytest.skip("this CPU converts no such numbers")
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
    result = attend_rows(query, key, value, mask, is_causal=causal, scale=0.3)
    assert (result.dtype, result.shape) == (dtype, (batch, rows, heads, of_values))
    assert result.is_contiguous()
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 4e-6
    assert ((result.double() - exact).abs() <= allowed).all()


def test_what_is_not_finite_shows() -> None:
    """A row that meets NaN is NaN, as in torch; one that sees nothing of it is not."""
    query, key, value = (torch.randn(1, 1, 140, 16) for _ in range(3))
    value[0, 0, 137] = torch.nan
    result = attend_rows(query, key, value, is_causal=True)
    assert result[0, 137:].isnan().all()
    assert result[0, :128].isfinite().all()


def test_however_operands_lie() -> None:
    """Parts of wider tensors, in any order of their dimensions, and a mask that is turned."""
    query, key, value = torch.randn(1, 4, 16, 140), torch.randn(140, 1, 2, 32)[..., ::2], torch.randn(1, 2, 200, 17)
    query, key, value = query.transpose(2, 3), key.permute(1, 2, 0, 3), value[:, :, 7:147, 1:]
    mask = torch.ones(140, 140, dtype=torch.bool).triu().t()[None, None]
    result = attend_rows(query, key, value, mask, is_causal=True)
    assert torch.equal(result, attend_rows(*(one.contiguous() for one in (query, key, value)), is_causal=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_bits(threads: int) -> None:
    """A result has the same bits on any number of threads, and in any batch."""
    query, key, value = (torch.randn(3, heads, 150, 32).bfloat16() for heads in (4, 2, 2))
    right = attend_rows(query, key, value, is_causal=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(attend_rows(query, key, value, is_causal=True), right)
        assert torch.equal(attend_rows(query[1:2], key[1:2], value[1:2], is_causal=True), right[1:2])
    finally:
        torch.set_num_threads(before)


def test_no_code() -> None:
    """What no code is compiled for is refused."""
    assert not can_attend_rows(torch.float64)
    with pytest.raises(RuntimeError, match="float64"):
        attend_rows(*(torch.ones(1, 1, 2, 2, dtype=torch.float64) for _ in range(3)), is_causal=True)
