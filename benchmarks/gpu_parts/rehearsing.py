"""The device that is named, and the rehearsal device of the tests in the place of a GPU. Imports no transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

REHEARSAL = "rehearsal"

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))


def prepare(device: str) -> str:
    """Return torch's full name of a device; "rehearsal" is registered first, in this process and in all that it starts."""
    if device == REHEARSAL:
        from accelerator.building import load  # type: ignore[import-not-found]

        load()
        return f"{torch.accelerator.current_accelerator()}:0"
    return device if device == "cpu" or ":" in device else f"{device}:0"


def counters(device: str) -> Callable[[], tuple[float, float]] | None:
    """Return a function that gives how often the host waited and how many kernels were started; None elsewhere."""
    if "accelerator.building" not in sys.modules:
        return None
    from accelerator.rehearsal import Rehearsal  # type: ignore[import-not-found]

    rehearsal = Rehearsal()

    def read() -> tuple[float, float]:
        counts = rehearsal.counts(torch.device(device).index)
        return counts.syncs, counts.kernels

    return read
