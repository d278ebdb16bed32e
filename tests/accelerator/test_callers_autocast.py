"""The autocast of a caller on an accelerator, whatever its backend is called."""

from __future__ import annotations

import torch
from accelerator.rehearsal import Rehearsal
from torch import nn

from safe_dtype.guarding.callers_autocast import autocast_around, autocast_here


def test_of_any_backend(rehearsal: Rehearsal) -> None:
    """It is known by the device that it is for; the autocast of the CPU does not concern a model on the device."""
    device = rehearsal.device()
    model = nn.Linear(4, 4, device=device)
    assert autocast_here() is None
    with torch.autocast(device.type, torch.bfloat16):
        autocast = autocast_here()
        assert autocast is not None
        assert (autocast.device_type, autocast.dtype) == (device.type, torch.bfloat16)
        assert autocast_around(model) == autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_here() is not None
        assert autocast_around(model) is None
