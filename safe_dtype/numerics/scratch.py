"""Room for what is cast and used at once, kept from one product to the next."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class _Kept(threading.local):
    """What this thread has, by dtype."""

    def __init__(self) -> None:
        self.numbers: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def scratch(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialized tensor that is good until this thread asks for the next one.

    On a CPU it is the same memory each time: fresh pages take longer to come by than numbers to cast into them.
    """
    if device.type != "cpu":  # its allocator keeps what is freed
        return torch.empty(shape, dtype=dtype, device=device)
    length = math.prod(shape)
    room = _kept.numbers.get(dtype)
    if room is None or room.numel() < length:
        # Not an inference tensor, which could not be written to outside of inference mode.
        with torch.inference_mode(mode=False):
            room = _kept.numbers[dtype] = torch.empty(length, dtype=dtype, device=device)
    return room[:length].view(*shape)
