"""What a launch runs on: nouns, and what of them accelerate cannot launch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from safe_dtype.errors import LaunchError
from safe_dtype.facts import DeviceFacts

# accelerate's name for several devices of a vendor. Both brands of GPU are "cuda" to torch.
_SEVERAL = {
    "nvidia": "MULTI_GPU",
    "amd": "MULTI_GPU",
    "intel_gpu": "MULTI_XPU",
    "npu": "MULTI_NPU",
    "hpu": "MULTI_HPU",
    # accelerate starts one process for MULTI_CPU unless mpirun is there; "GPUs" that are told to use the CPU it starts.
    "cpu": "MULTI_GPU",
    "apple": "NO",
}


class Engine(str, Enum):
    """Who holds which part of the model."""

    DDP = "ddp"  # every process holds all of it
    FSDP2 = "fsdp2"
    ZERO2 = "zero2"
    ZERO3 = "zero3"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices of one job: `per_machine` processes on each of `machines` machines."""

    devices: tuple[DeviceFacts, ...]  # each kind once, whichever machine it is in
    per_machine: int = 1
    machines: int = 1
    engine: Engine = Engine.DDP

    @property
    def vendor(self) -> str:
        """Whose devices they are."""
        return self.devices[0].vendor

    @property
    def processes(self) -> int:
        """How many processes there are in all."""
        return self.per_machine * self.machines

    @property
    def distributed_type(self) -> str:
        """Accelerate's word for it."""
        if self.engine is Engine.FSDP2:
            return "FSDP"
        if self.engine in (Engine.ZERO2, Engine.ZERO3):
            return "DEEPSPEED"
        return "NO" if self.processes == 1 else _SEVERAL[self.vendor]

    def __str__(self) -> str:
        names = " and ".join(device.name for device in self.devices)
        where = f"each of {self.machines} machines" if self.machines > 1 else "one machine"
        return f"{names}: {self.per_machine} process{'es' * (self.per_machine > 1)} on {where}"


def check_fleet(fleet: Fleet) -> None:
    """Raise where accelerate cannot launch `fleet`, or would launch something else.

    Raises:
        LaunchError: It names the facts.
    """
    if not fleet.devices or fleet.per_machine < 1 or fleet.machines < 1:
        raise LaunchError("A launch needs a device, a process and a machine", "name at least one of each")
    vendors = {device.vendor: device.name for device in fleet.devices}
    if len(vendors) > 1:
        raise LaunchError(
            f"{' and '.join(vendors.values())} cannot be in one job: their libraries for collectives differ",
            "launch one job for each kind",
        )
    if fleet.vendor not in _SEVERAL:
        raise LaunchError(
            f"No config is known for {fleet.devices[0].name}: accelerate launches it in a way of its own",
            "run `accelerate config`",
        )
    if fleet.vendor == "apple" and fleet.processes > 1:
        raise LaunchError(
            "A Mac has one GPU, and torch has no collectives between those of several Macs", "use one process"
        )
    if fleet.vendor in ("cpu", "apple") and fleet.engine is not Engine.DDP:
        raise LaunchError(
            f"{fleet.engine} needs GPUs or their like: on {fleet.devices[0].name} accelerate would run something else",
            "leave the engine out, for plain data parallel",
        )
