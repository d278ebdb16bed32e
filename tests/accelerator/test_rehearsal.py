"""The rehearsal device keeps what it promises: it computes as the CPU, counts, refuses, and is lost when told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerator.rehearsal import Counts, Rehearsal

Tensors = tuple[torch.Tensor, ...]


def _numbers(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(len(size)), dtype=torch.float32).to(dtype)


SQUARE, VECTOR, IMAGE = _numbers(6, 6), _numbers(12), _numbers(2, 3, 8, 8)
HEADS, WHOLE = _numbers(2, 4, 5, 8), torch.arange(10) * 7 % 10
WEIGHT, LOW = _numbers(4, 3, 3, 3), _numbers(6, 6, dtype=torch.bfloat16)


def test_results_are_the_cpus(rehearsal: Rehearsal) -> None:
    x = SQUARE.to("musa:1")
    assert torch.equal((x @ x).cpu(), SQUARE @ SQUARE)
    with rehearsal.counting() as counting:
        (x + 1).sum().item()
    assert counting.counts == Counts(2, 1, 0)
