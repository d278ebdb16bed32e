"""Ranks that clip by functions of torch: no bit differs from a run by hand, under DDP and FSDP2, whatever fails on one of them."""

from __future__ import annotations

import pytest
from ranks.processes import Launch, run_ranks
from training.mistakes.clipping_ranks import CLIPS, all_differences


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_no_bit_differs(engine: str) -> None:
    """In float16, after an overflow, and where a kernel fails on one rank: for each way that torch has to clip."""
    assert run_ranks(all_differences, 2, engine, list(CLIPS), launch=Launch(seconds=170)) == [[], []]
