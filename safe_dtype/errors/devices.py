"""Errors of dtypes by name, and of devices."""

from __future__ import annotations

import re

from .base import SafeDtypeError

_OF_NO_SIZE = re.compile(r"(?<![\d.,])0+([.,]0+)? ?[kmgtp]i?b\b", re.IGNORECASE)
_PRODUCTS = {"mps": "Apple M2", "xpu": "Intel Arc A770"}  # by torch's kind of a device, as an example


class UnknownDtypeError(SafeDtypeError, ValueError):
    """There is no number format of this name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return (
            f"No dtype is called {self.name!r}. Next: use one of {', '.join(self.known)}, or the short names bf16, "
            "fp16, fp32, fp8; a model is loaded in bfloat16, float16 or float32."
        )


class DeviceError(SafeDtypeError, RuntimeError):
    """Something is wrong with a device."""


class NoSuchDeviceError(DeviceError):
    """The device asked for is not on this machine."""

    def __init__(self, device: str, found: tuple[str, ...]) -> None:
        super().__init__(device, found)
        self.device, self.found = device, found

    def __str__(self) -> str:
        product = _PRODUCTS.get(self.device.strip().lower().partition(":")[0], "NVIDIA Tesla T4")
        problem = f"No device {self.device!r} here." if self.device.strip() else "The name of the device is empty."
        return (
            f"{problem} Would work: {', '.join(self.found)}. Next: pass one of these; "
            "`safe-dtype plan --device` also takes the name of a product that is not here, as in "
            f"{product!r}, and `safe-dtype plan --list-devices` lists them."
        )


class UnknownDeviceError(NoSuchDeviceError):
    """No product of this name is known. `found` are the known names that are close."""

    def __str__(self) -> str:
        if _OF_NO_SIZE.search(self.device):
            return (
                f"The device {self.device!r} has a memory of 0 in its name, which holds no model. Next: name its size, as "
                "in 'Apple M2 24 GB', or leave it out."
            )
        close = f" Close to it: {'; '.join(self.found)}." if self.found else ""
        named = (
            f"The device {self.device!r} is not known." if self.device.strip() else "The name of the device is empty."
        )
        return (
            f"{named}{close} Next: `safe-dtype plan --list-devices` lists the known "
            "ones; an architecture is one too, as in 'gfx1030' or 'sm_75'."
        )


class ProbeError(DeviceError):
    """The measurement itself could not run."""

    def __init__(self, device: str, problem: str, advice: str) -> None:
        super().__init__(device, problem, advice)
        self.device, self.problem, self.advice = device, problem, advice

    def __str__(self) -> str:
        return f"Could not measure {self.device}: {self.problem}. Next: {self.advice}."
