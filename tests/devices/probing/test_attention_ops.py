"""Attention in chunks is measured against the same exact result as torch's own, and of the same work."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.devices.probing.attention_ops import attention, attention_chunks, attention_row
from safe_dtype.devices.probing.workspace import Workspace
from safe_dtype.facts import BFLOAT16

pytest.importorskip("llvmlite", reason="kernels are compiled by llvmlite, of the extra `fast`")


@pytest.mark.parametrize("rows", [1, 300, 512])
def test_same_case(rows: int) -> None:
    """All forms have one result, causal where rows and positions are as many."""
    space = Workspace(torch.device("cpu"))
    own, chunks, row = (build(space, BFLOAT16, rows, (0, 0)) for build in (attention, attention_chunks, attention_row))
    for other in (chunks, row):
        assert (own.work, own.bytes_read) == (other.work, other.bytes_read)
        torch.testing.assert_close(own.call(0), other.call(0), rtol=1.6e-2, atol=1e-3)
    for case in (own, chunks, row):
        part, exact = case.exact(case.call(0))
        assert (part - exact).abs().max() < 1e-2 * exact.abs().max()
