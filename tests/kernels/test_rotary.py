"""Queries and keys turned by their positions, compiled."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from safe_dtype.kernels.rotary import can_turn, turn

pytest.importorskip("llvmlite", reason="rotations are compiled by llvmlite, of the extra `fast`")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# batch, of tables, heads, of keys, positions, width
SHAPES = [(1, 1, 16, 8, 1, 128), (2, 1, 4, 4, 3, 64), (3, 3, 6, 1, 70, 96), (1, 1, 2, 2, 5, 6), (2, 2, 3, 1, 1, 2)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [True, False])
def test_has_the_bits_of_transformers(shape: tuple[int, ...], dtype: torch.dtype, transposed: bool) -> None:
    """Every number has the bits that it has in transformers, and lies where it lies there."""
    batch, of_tables, heads, of_keys, positions, width = shape
    torch.manual_seed(0)

    def states(count: int) -> torch.Tensor:
        if transposed:
            return torch.randn(batch, positions, count, width).to(dtype).transpose(1, 2)
        return torch.randn(batch, count, positions, width).to(dtype)

    query, key = states(heads), states(of_keys)
    angles = 5 * torch.randn(of_tables, positions, width)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    query[0, 0, 0, 0], key[0, 0, 0, -1] = float("inf"), float("nan")
    mine, right = turn(query, key, cos, sin), apply_rotary_pos_emb(query, key, cos, sin)
    for ours, theirs in zip(mine, right, strict=True):
        assert ours.shape == theirs.shape
        assert ours.is_contiguous() == theirs.is_contiguous()
        assert ours.transpose(1, 2).is_contiguous() == theirs.transpose(1, 2).is_contiguous()
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_what_is_not_compiled() -> None:
    """Other dtypes are refused."""
    assert not can_turn(torch.float64)
    four = torch.ones(1, 1, 1, 2).double()
    with pytest.raises(RuntimeError, match=r"torch\.float64"):
        turn(four, four, four[0], four[0])
