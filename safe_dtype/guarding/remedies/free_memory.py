"""Whether a device has room for what a remedy adds to a model."""

from __future__ import annotations

import torch

from ...devices import memory_of
from .remedy import NotPossible

_MARGIN = 1.02  # allocators round up


def require_free(needed: dict[torch.device, int]) -> None:
    """Check that every device has so many bytes free. A device that does not tell is taken to have them.

    Raises:
        NotPossible: If one has not. Its text has both numbers.
    """
    for device, more in needed.items():
        free = memory_of(str(device)).free_bytes
        if more * _MARGIN > free > 0:
            raise NotPossible(f"needs {more:,} bytes more on {device}, {free:,} are free")
