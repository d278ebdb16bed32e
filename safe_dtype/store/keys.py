"""The device in the key of what is remembered: everything of it that changes what was found out on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

Pairs = Iterable[tuple[str, str]]


class KeyedDevice(Protocol):
    """What keys take from a device: `facts.DeviceFacts` is one."""

    @property
    def name(self) -> str:
        """The product."""

    @property
    def capability(self) -> str:
        """The product's generation, or the flags of a CPU."""

    @property
    def driver(self) -> str:
        """The version of the driver."""

    @property
    def versions(self) -> Pairs:
        """Versions of torch and what is beneath it."""

    @property
    def settings(self) -> Pairs:
        """Environment, threads and switches that change kernels."""


def hardware_key(device: KeyedDevice, uuid: str) -> dict[str, Any]:
    """Return what identifies one piece of hardware with its software, whatever the settings of this process are."""
    return {"name": device.name, "uuid": uuid, "driver": device.driver, "versions": dict(device.versions)}


def verdicts_key(device: KeyedDevice, uuid: str) -> dict[str, Any]:
    """Return what the verdicts on one piece of hardware depend on."""
    return {**hardware_key(device, uuid), "capability": device.capability, "settings": dict(device.settings)}


def results_key(device: KeyedDevice) -> dict[str, Any]:
    """Return what a model's numbers depend on: two pieces of the same hardware compute the same."""
    return {
        "device": device.name,
        "driver": device.driver,
        "versions": dict(device.versions),
        "settings": dict(device.settings),
    }
