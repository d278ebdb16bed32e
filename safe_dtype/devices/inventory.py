"""Which devices this machine has, and what each of them is. Nothing is measured."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from ..errors import NoSuchDeviceError
from ..facts import DeviceFacts
from .accelerators import Hardware, accelerators
from .claims import claims_about
from .memory import UNKNOWN_MEMORY, memory_of
from .priors import family_of
from .processor import cpu_capability, cpu_name
from .settings import settings, versions


def detect() -> tuple[DeviceFacts, ...]:
    """Return all devices of this machine, without verdicts: accelerators first, the CPU last."""
    return tuple(_facts(hardware) for hardware in hardware_here())


def detect_one(device: str) -> DeviceFacts:
    """Return one device, without verdicts: "cpu", "cuda:1"; "cuda" is the first of its kind.

    Raises:
        NoSuchDeviceError: If it is not here.
    """
    return _facts(hardware_of(device))


def identity_of(device: str) -> DeviceFacts:
    """Return what one device is, without asking it anything: it may be lost. Its memory and claims are left out.

    Raises:
        NoSuchDeviceError: If it is not here.
    """
    return _identity(hardware_of(device))


def default_device() -> str:
    """Return the first accelerator, or "cpu"."""
    return hardware_here()[0].device


def hardware_here() -> tuple[Hardware, ...]:
    """Return every device, accelerators first."""
    return (*accelerators(), _cpu())


def hardware_of(device: str) -> Hardware:
    """Return the device that torch's name `device` means.

    Raises:
        NoSuchDeviceError: If it is not here.
    """
    asked = device.strip().lower()
    full = asked if re.search(r":\d+$", asked) else f"{asked}:0"
    for hardware in hardware_here():
        if full in (hardware.device, f"{hardware.device}:0"):
            return hardware
    raise NoSuchDeviceError(device, tuple(hardware.device for hardware in hardware_here()))


@cache
def _cpu() -> Hardware:
    return Hardware("cpu", cpu_name(), "cpu", cpu_capability())


def _facts(hardware: Hardware) -> DeviceFacts:
    facts = _identity(hardware)
    return with_family(replace(facts, memory=memory_of(facts.device), claims=claims_about(facts.device)))


def _identity(hardware: Hardware) -> DeviceFacts:
    return DeviceFacts(
        device=hardware.device,
        name=hardware.name,
        memory=UNKNOWN_MEMORY,
        vendor=hardware.vendor,
        capability=hardware.capability,
        driver=hardware.driver,
        versions=versions(),
        settings=settings(),
    )


def with_family(facts: DeviceFacts) -> DeviceFacts:
    """Return `facts` with the row of the prior table that matches, and its order of trying."""
    prior = family_of(facts)
    return replace(facts, family=prior.family, prior_order=prior.order) if prior else facts
