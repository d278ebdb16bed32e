"""Memory of devices that this process has and does not use."""

from __future__ import annotations

import gc
from typing import Any

import torch

from .accelerators import accelerators


def free_unused_memory() -> None:
    """Free models that only refer to themselves, and let other processes have what allocators keep of the devices."""
    gc.collect()
    for kind in {torch.device(one.device).type for one in accelerators()}:
        backend: Any = torch.get_device_module(kind)
        if hasattr(backend, "empty_cache"):  # a plugin may have an allocator that keeps nothing
            backend.empty_cache()
