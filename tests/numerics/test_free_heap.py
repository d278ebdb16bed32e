"""What the heap keeps goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pytest
import torch

from safe_dtype.numerics.free_heap import give_back_free_heap

MB = 2**20


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no heap of glibc here"
)
def test_pages_between_blocks_in_use() -> None:
    """Every second of many blocks was freed, and most of their pages are the system's again; the others keep their numbers."""
    blocks = [torch.full((16_000,), 3.0) for _ in range(1600)]  # of 64 kB: 100 MB
    del blocks[::2]
    before = psutil.Process().memory_info().rss
    give_back_free_heap()
    assert psutil.Process().memory_info().rss < before - 25 * MB
    assert all(bool((block == 3.0).all()) for block in blocks)
