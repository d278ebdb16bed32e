"""Whether a device has room for what a remedy adds to a model."""

from __future__ import annotations

import torch

from ...devices import shortage
from .remedy import NotPossible


def require_free(needed: dict[torch.device, int]) -> None:
    """Check that every device has so many bytes free. A device that does not tell is taken to have them.

    Raises:
        NotPossible: If one has not. Its text has both numbers.
    """
    if reason := shortage({str(device): more for device, more in needed.items()}):
        raise NotPossible(reason)
