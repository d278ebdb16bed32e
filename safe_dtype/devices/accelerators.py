"""The accelerators that this torch can use: CUDA, ROCm, XPU, MPS, and whatever a plugin registers (NPU, HPU, ...)."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from .backend import answer_of
from .processor import cpu_name

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_AMD_DRIVER = Path("/sys/module/amdgpu/version")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What never changes about one device while the process runs."""

    device: str
    name: str
    vendor: str
    capability: str = ""
    driver: str = ""
    uuid: str = ""


@cache
def accelerators() -> tuple[Hardware, ...]:
    """Return every accelerator, in torch's order."""
    several = [hardware for available, describe in _KNOWN if available() for hardware in _each(describe)]
    return tuple(several) or tuple(_plugged_in())


def _each(describe: tuple[Callable[[], int], Callable[[int], Hardware]]) -> Iterator[Hardware]:
    count, describe_one = describe
    yield from (describe_one(index) for index in range(count()))


def _cuda(index: int) -> Hardware:
    properties = torch.cuda.get_device_properties(index)
    uuid = str(getattr(properties, "uuid", ""))
    if torch.version.hip:
        # gcnArchName is "gfx90a:sramecc+:xnack-".
        gfx = str(properties.gcnArchName).partition(":")[0]
        return Hardware(f"cuda:{index}", properties.name, "amd", gfx, _first_line(_AMD_DRIVER), uuid)
    capability = f"{properties.major}.{properties.minor}"
    return Hardware(f"cuda:{index}", properties.name, "nvidia", capability, _nvidia_driver(), uuid)


def _xpu(index: int) -> Hardware:
    properties = torch.xpu.get_device_properties(index)
    uuid = str(getattr(properties, "uuid", ""))
    version = str(getattr(properties, "version", ""))
    return Hardware(f"xpu:{index}", properties.name, "intel_gpu", version, str(properties.driver_version), uuid)


def _mps(index: int) -> Hardware:
    chip = re.search(r"\bM\d+\b", cpu_name())
    return Hardware(
        f"mps:{index}", cpu_name(), "apple", chip[0] if chip else "Intel", f"macOS {platform.mac_ver()[0]}"
    )


_KNOWN: tuple[tuple[Callable[[], bool], tuple[Callable[[], int], Callable[[int], Hardware]]], ...] = (
    (torch.cuda.is_available, (torch.cuda.device_count, _cuda)),
    (torch.xpu.is_available, (torch.xpu.device_count, _xpu)),
    (torch.backends.mps.is_available, (lambda: 1, _mps)),
)


def _plugged_in() -> Iterator[Hardware]:
    """Describe the devices of a plugin through the calls that every backend module has by convention."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return
    for index in range(torch.accelerator.device_count()):
        name = answer_of(kind.type, "get_device_name", index) or kind.type
        capability = _version_of(answer_of(kind.type, "get_device_capability", index))
        yield Hardware(f"{kind.type}:{index}", str(name), kind.type, capability)


def _version_of(capability: object) -> str:
    """Return "7.5" for (7, 5), and nothing for zeros: the answer of a plugin whose devices have no versions."""
    if isinstance(capability, tuple):
        return ".".join(map(str, capability)) if any(capability) else ""
    return str(capability or "")


def _nvidia_driver() -> str:
    # The line reads: NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024
    number = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _first_line(_NVIDIA_DRIVER))
    return number[0] if number else f"for CUDA {torch.version.cuda}"


def _first_line(file: Path) -> str:
    return file.read_text().partition("\n")[0].strip() if file.exists() else ""
