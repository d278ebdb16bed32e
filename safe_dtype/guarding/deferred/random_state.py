"""The random numbers that tokens are drawn with, on the device where they are drawn."""

from __future__ import annotations

import torch


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator of `device`: on every backend it is kept by the host, so nothing is read."""
    if device.type in ("cpu", "mps"):
        return torch.get_rng_state() if device.type == "cpu" else torch.mps.get_rng_state()
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Bring the generator of `device` back to `state`."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)
