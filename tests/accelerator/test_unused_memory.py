"""Memory that nobody uses any more is there for other processes."""

from __future__ import annotations

from typing import Any

import torch
from accelerator.rehearsal import Rehearsal

from safe_dtype.devices.unused_memory import free_unused_memory


def test_of_a_model_that_refers_to_itself(rehearsal: Rehearsal) -> None:
    """Neither the model nor the allocator keeps any, on either device."""
    for index in (0, 1):
        model: Any = torch.nn.Linear(256, 256, device=rehearsal.device(index))
        model.__dict__["itself"] = model
        del model
    free_unused_memory()
    assert [rehearsal.figure(name, index) for name in ("allocated", "reserved") for index in (0, 1)] == [0] * 4
    rehearsal.withhold("empty_cache")
    free_unused_memory()
