"""What a device is: its name, driver and memory, and the versions of what drives it."""

from __future__ import annotations

from typing import Any

import torch

from safe_dtype.devices import detect_one

from .rehearsing import prepare


def device_words(device: str) -> dict[str, Any]:
    """Return what tells one device from another, in words for a table."""
    facts = detect_one(prepare(device))
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "name": facts.name, "capability": facts.capability, "driver": facts.driver,
        "memory_bytes": facts.memory.total_bytes, "free_bytes": facts.memory.free_bytes,
        "cuda": torch.version.cuda or "", "cudnn": cudnn or "", "devices": torch.accelerator.device_count(),
        **dict(facts.versions),
    }  # fmt: skip
