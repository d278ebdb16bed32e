"""How many bytes a device has and how many of them are free, after every limit."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import psutil
import torch

from ..facts import MemoryFacts
from .backend import answer_of

_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for "none"


@dataclass(frozen=True, slots=True)
class CgroupLimit:
    """The tightest limit over all the groups this process is in. Page cache that can be dropped counts as free."""

    total_bytes: int
    free_bytes: int


_MARGIN = 1.02  # allocators round up
# Statistics of a group: page cache that the kernel drops first, and all that it drops before it ends a process. A group of 900 MB
# with 500 MB of a file that was read twice in it, all of which is active, gave 700 MB (Linux 6.18, version 1).
_DROPPED_FIRST = ("inactive_file",)
_DROPPED_AT_LAST = ("inactive_file", "active_file", "slab_reclaimable")
_FREE_AT_LAST = ("MemFree", "Inactive(file)", "Active(file)", "SReclaimable")  # of /proc/meminfo
UNKNOWN_MEMORY = MemoryFacts(0, 0, "device")


def memory_of(device: str, max_memory: Mapping[Any, Any] | None = None) -> MemoryFacts:
    """Return the memory of `device`.

    `max_memory` is what accelerate takes: accelerators by index, "cpu" and "mps" by name, numbers or "10GiB". A device
    that it does not name keeps what it has.
    """
    where = torch.device(device)
    memory = _main_memory() if where.type == "cpu" else _accelerator_memory(where)
    return limited(memory, allowance(where, max_memory or {}))


def peak_held(device: str) -> int | None:
    """Return how many bytes this process has held on `device` at its peak, of anything; None where nobody counts them."""
    where = torch.device(device)
    if where.type == "cpu":
        try:
            import resource
        except ImportError:  # Windows
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    reserved = answer_of(where.type, "max_memory_reserved", where.index or 0)
    return None if reserved is None else int(reserved)


def free_at_last(root: Path = Path("/")) -> int | None:
    """Return how many bytes Linux gives to this process before it ends one: none is spared for its files, and what it can it swaps out.

    None elsewhere, where swap grows by itself. `root` is where `proc` and `sys` are.
    """
    try:
        lines = re.findall(r"^([\w()]+):\s+(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    sizes = {name: int(size) * 1024 for name, size in lines}
    if "SwapFree" not in sizes:
        return None
    free = sum(sizes.get(name, 0) for name in _FREE_AT_LAST)
    group = cgroup_limit(root, dropped=_DROPPED_AT_LAST)
    return (free if group is None else min(free, group.free_bytes)) + sizes["SwapFree"]


def shortage(needed: Mapping[str, int]) -> str | None:
    """Return which device has not so many bytes free; None where all have. One that does not tell is taken to have them."""
    for device, more in needed.items():
        memory = memory_of(device)
        if not memory.has_room_for(math.ceil(more * _MARGIN)):
            return f"needs {more:,} bytes more on {device}, {memory.free_bytes:,} are free"
    return None


def limited(memory: MemoryFacts, allowed: int | None) -> MemoryFacts:
    """Return `memory` with no more than `allowed` bytes of it."""
    if allowed is None or (memory.total_bytes and allowed >= memory.free_bytes):
        return memory
    if not memory.total_bytes:
        return MemoryFacts(allowed, allowed, "max_memory")
    return MemoryFacts(min(memory.total_bytes, allowed), allowed, "max_memory")


def allowance(device: torch.device, max_memory: Mapping[Any, Any]) -> int | None:
    """Return what `max_memory` allows on `device`, in bytes; None where it does not name it."""
    names = (device.type,) if device.type in ("cpu", "mps") else (device.index or 0, str(device))
    for name in names:
        if name in max_memory:
            return bytes_of(max_memory[name])
    return None


def limits_of(max_memory: Mapping[Any, Any] | None) -> dict[Any, int]:
    """Return the sizes of `max_memory` in bytes, by device; nothing for None.

    Raises:
        ValueError: If it is no table, a size in it is none, or there is no such device here.
    """
    if not isinstance(max_memory, Mapping | None):
        raise ValueError(f"max_memory: {max_memory!r} names no device. Next: write a table, as in {{'cpu': '10GiB'}}.")
    return {device: _limit(device, size) for device, size in (max_memory or {}).items()}


def _limit(device: Any, size: Any) -> int:
    if not _is_here(device):
        raise ValueError(
            f"max_memory: there is no device {device!r} here. Next: name one that is, as in {{'cpu': '10GiB'}}; the number "
            "of an accelerator is an int."
        )
    if isinstance(size, bool) or not (isinstance(size, str) or (isinstance(size, Real) and math.isfinite(size))):
        raise ValueError(f"max_memory: {size!r} is no size. Next: write bytes as a number, or a unit, as in '10GiB'.")
    if (limit := bytes_of(size if isinstance(size, str) else float(size))) <= 0:
        raise ValueError(
            f"max_memory: {size!r} leaves no memory on {device!r}. Next: write more than 0 bytes, or leave the device out."
        )
    return limit


def _is_here(device: Any) -> bool:
    """Whether `device`, as accelerate names it in `max_memory`, is one of this machine."""
    if isinstance(device, int) and not isinstance(device, bool):
        return 0 <= device < torch.accelerator.device_count()
    if not isinstance(device, str):
        return False
    if device == "cpu":
        return True
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind, _, number = device.partition(":")
    if accelerator is None or kind != accelerator.type:
        return False
    return device == "mps" or (number.isdecimal() and int(number) < torch.accelerator.device_count())


def bytes_of(size: float | str) -> int:
    """Read a size as accelerate does: a number of bytes, or "10GiB", "500MB"; a small b counts bits.

    Raises:
        ValueError: If it is no size.
    """
    if not isinstance(size, str):
        return int(size)
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT])(I?)B\s*", size, re.IGNORECASE)
    if not match:
        raise ValueError(f"max_memory: {size!r} is no size. Next: write bytes as a number, or a unit, as in '10GiB'.")
    number, unit, binary = match.groups()
    count = int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1))
    return count // 8 if size.rstrip().endswith("b") and not binary else count


def cgroup_limit(root: Path, *, dropped: Sequence[str] = _DROPPED_FIRST) -> CgroupLimit | None:
    """Return the tightest memory limit of the control groups of this process, of version 1 or 2; None without one.

    Args:
        root: Where `proc` and `sys` are: "/", or a folder that looks like it.
        dropped: Statistics of what is used and counts as free.
    """
    limits = [limit for files in _limit_files(root) if (limit := files.read(dropped))]
    if not limits:
        return None
    return CgroupLimit(min(one.total_bytes for one in limits), min(one.free_bytes for one in limits))


@dataclass(frozen=True, slots=True)
class _LimitFiles:
    """Where one control group says what it may use and what it uses."""

    limit: Path
    used: Path
    statistics: Path
    prefix: str  # of the statistics that count the groups inside as well

    def read(self, dropped: Sequence[str]) -> CgroupLimit | None:
        limit = _number(self.limit)
        if limit is None or limit >= _UNLIMITED:
            return None
        free = sum(_statistic(self.statistics, f"{self.prefix}{name}") for name in dropped)
        used = (_number(self.used) or 0) - free
        return CgroupLimit(limit, max(0, limit - max(0, used)))


@cache
def _limit_files(root: Path) -> tuple[_LimitFiles, ...]:
    """Return the files of this process's memory groups, from its own up to the mounts."""
    listing = root / "proc/self/cgroup"
    lines = listing.read_text().splitlines() if listing.exists() else []
    both = [one for line in lines for group in _groups(line, root / "sys/fs/cgroup") for one in _either_version(group)]
    return tuple(one for one in both if one.limit.exists())


def _groups(line: str, mount: Path) -> Iterator[Path]:
    """Yield the folders that one line of /proc/self/cgroup means for memory."""
    number, controllers, path = line.split(":", 2)
    if number == "0":  # version 2; beside version 1 it is mounted one level down
        tops = [mount, mount / "unified"]
    else:
        tops = [mount / "memory"] if "memory" in controllers.split(",") else []
    for top in tops:
        # In a container the path may be the host's and absent here: then the mount itself is our group.
        own = top / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group == top or top in group.parents)


def _either_version(group: Path) -> tuple[_LimitFiles, _LimitFiles]:
    return (
        _LimitFiles(group / "memory.max", group / "memory.current", group / "memory.stat", ""),
        _LimitFiles(
            group / "memory.limit_in_bytes",
            group / "memory.usage_in_bytes",
            group / "memory.stat",
            "total_",
        ),
    )


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:  # absent, or not ours to read
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _statistic(file: Path, key: str) -> int:
    try:
        match = re.search(rf"^{key} (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def _main_memory() -> MemoryFacts:
    system = psutil.virtual_memory()
    device = MemoryFacts(int(system.total), int(system.available), "device")
    return within_group(device, cgroup_limit(Path("/")))


def within_group(memory: MemoryFacts, group: CgroupLimit | None) -> MemoryFacts:
    """Return `memory` with no more than `group` allows of it."""
    if group is None:
        return memory
    total = min(memory.total_bytes, group.total_bytes)
    if group.free_bytes >= memory.free_bytes:
        return MemoryFacts(total, memory.free_bytes, memory.limited_by)
    return MemoryFacts(total, group.free_bytes, "cgroup")


def _accelerator_memory(device: torch.device) -> MemoryFacts:
    if device.type == "mps":
        # Unified memory: what Metal recommends, and no more than the system has left.
        total = torch.mps.recommended_max_memory()
        free = min(total - torch.mps.driver_allocated_memory(), _main_memory().free_bytes)
        return MemoryFacts(total, max(0, free), "device")
    kind, index = device.type, device.index or 0
    driver = _driver_memory(device)
    if driver is None:
        return UNKNOWN_MEMORY
    total, free = driver
    # Blocks that torch's allocator keeps for itself are free to this process.
    reserved, allocated = answer_of(kind, "memory_reserved", index), answer_of(kind, "memory_allocated", index)
    cached = reserved - allocated if reserved is not None and allocated is not None else 0
    return MemoryFacts(total, free + max(0, cached), "device")


def _driver_memory(device: torch.device) -> tuple[int, int] | None:
    """Return all bytes of an accelerator and those that no process has; None where its backend does not tell."""
    kind, index = device.type, device.index or 0
    figures = answer_of(kind, "mem_get_info", index) or answer_of("accelerator", "get_memory_info", device)
    if figures is not None:
        free, total = figures
        return int(total), int(free)
    total = getattr(answer_of(kind, "get_device_properties", index), "total_memory", None)
    used = answer_of(kind, "memory_reserved", index)
    used = answer_of(kind, "memory_allocated", index) if used is None else used
    return None if total is None or used is None else (int(total), max(0, int(total) - int(used)))
