"""Memory: control groups of both versions as folders, `max_memory` as accelerate takes it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from accelerate.utils.modeling import convert_file_size_to_int

from safe_dtype.devices import memory_of
from safe_dtype.devices.memory import (
    CgroupLimit,
    allowance,
    bytes_of,
    cgroup_limit,
    free_at_last,
    limited,
    within_group,
)
from safe_dtype.facts import MemoryFacts

MB = 2**20
V1_NONE = "9223372036854771712"


def tree(root: Path, own: str, files: dict[str, str]) -> Path:
    """Make a folder that looks like / to a process in the group `own`, a line of /proc/self/cgroup."""
    for name, text in {"proc/self/cgroup": f"1:cpu:/\n{own}\n", **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        pytest.param(
            "0::/app",
            {"sys/fs/cgroup/app/memory.max": f"{100 * MB}\n", "sys/fs/cgroup/app/memory.current": f"{30 * MB}\n"},
            CgroupLimit(100 * MB, 70 * MB),
            id="v2",
        ),
        pytest.param(
            "0::/app",
            {
                "sys/fs/cgroup/app/memory.max": f"{100 * MB}",
                "sys/fs/cgroup/app/memory.current": f"{90 * MB}",
                "sys/fs/cgroup/app/memory.stat": f"anon 1\ninactive_file {60 * MB}\n",
            },
            CgroupLimit(100 * MB, 70 * MB),
            id="v2-page-cache-can-be-dropped",
        ),
        pytest.param(
            "0::/slice/app",
            {
                "sys/fs/cgroup/slice/app/memory.max": "max",
                "sys/fs/cgroup/slice/memory.max": f"{50 * MB}",
                "sys/fs/cgroup/slice/memory.current": f"{10 * MB}",
            },
            CgroupLimit(50 * MB, 40 * MB),
            id="v2-limit-of-the-parent",
        ),
        pytest.param(
            "0::/slice/app",
            {
                "sys/fs/cgroup/slice/app/memory.max": f"{80 * MB}",
                "sys/fs/cgroup/slice/app/memory.current": "0",
                "sys/fs/cgroup/slice/memory.max": f"{100 * MB}",
                "sys/fs/cgroup/slice/memory.current": f"{90 * MB}",
            },
            CgroupLimit(80 * MB, 10 * MB),
            id="v2-a-sibling-uses-up-what-the-parent-has",
        ),
        pytest.param(
            "0::/",
            {"sys/fs/cgroup/memory.max": f"{64 * MB}", "sys/fs/cgroup/memory.current": f"{4 * MB}"},
            CgroupLimit(64 * MB, 60 * MB),
            id="v2-in-a-container-the-mount-is-the-group",
        ),
        pytest.param("0::/app", {"sys/fs/cgroup/app/memory.max": "max"}, None, id="v2-no-limit"),
        pytest.param(
            "4:memory,hugetlb:/docker/abc",
            {
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{100 * MB}",
                "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": f"{20 * MB}",
                "sys/fs/cgroup/memory/docker/abc/memory.stat": f"inactive_file 1\ntotal_inactive_file {5 * MB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NONE,
            },
            CgroupLimit(100 * MB, 85 * MB),
            id="v1",
        ),
        pytest.param(
            "4:memory:/docker/abc",
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{100 * MB}",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{20 * MB}",
            },
            CgroupLimit(100 * MB, 80 * MB),
            id="v1-the-path-is-the-hosts-and-absent-here",
        ),
        pytest.param("4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": V1_NONE}, None, id="v1-no-limit"),
        pytest.param(
            "0::/app",
            {"sys/fs/cgroup/app/memory.max": f"{10 * MB}", "sys/fs/cgroup/app/memory.current": f"{12 * MB}"},
            CgroupLimit(10 * MB, 0),
            id="used-up",
        ),
        pytest.param("0::/app", {}, None, id="nothing-mounted"),
    ],
)
def test_cgroup(tmp_path: Path, own: str, files: dict[str, str], found: CgroupLimit | None) -> None:
    """The tightest limit and the tightest remainder on the way up decide."""
    assert cgroup_limit(tree(tmp_path, own, files)) == found


_MEMINFO = "MemFree: 300 kB\nInactive(file): 20 kB\nActive(file): 50 kB\nSReclaimable: 5 kB\nSwapFree: {swap} kB\n"


@pytest.mark.parametrize(
    ("own", "folder", "names"),
    [
        ("0::/app", "sys/fs/cgroup/app", ("memory.max", "memory.current", "")),
        ("4:memory:/app", "sys/fs/cgroup/memory/app", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")),
    ],
    ids=["v2", "v1"],
)
def test_free_at_last(tmp_path: Path, own: str, folder: str, names: tuple[str, str, str]) -> None:
    """Before it ends a process the kernel drops all files from memory, not only those that nobody reads, and swaps."""
    limit, used, prefix = names
    files = {
        "proc/meminfo": _MEMINFO.format(swap=7),
        f"{folder}/{limit}": f"{100 * 1024}",
        f"{folder}/{used}": f"{90 * 1024}",
        f"{folder}/memory.stat": f"{prefix}inactive_file {10 * 1024}\n{prefix}active_file {40 * 1024}\n",
    }
    root = tree(tmp_path, own, files)
    assert free_at_last(root) == (10 + 10 + 40 + 7) * 1024
    assert cgroup_limit(root) == CgroupLimit(100 * 1024, 20 * 1024)


@pytest.mark.parametrize(
    ("text", "found"), [(_MEMINFO.format(swap=0), 375 * 1024), ("MemFree: 300 kB\n", None), (None, None)]
)
def test_free_at_last_of_a_whole_machine(tmp_path: Path, text: str | None, found: int | None) -> None:
    """Without a group it is what is free, files and swap; where Linux does not tell, nobody knows."""
    assert free_at_last(tree(tmp_path, "0::/", {} if text is None else {"proc/meminfo": text})) == found


def test_it_is_no_less_than_what_is_free() -> None:
    """On this machine the system gives at last no less than what counts as free to a plan."""
    free = memory_of("cpu").free_bytes
    assert free_at_last() is None or free_at_last() >= 0.9 * free


def test_no_control_groups(tmp_path: Path) -> None:
    """A system without control groups has no such limit."""
    assert cgroup_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("group", "found"),
    [
        pytest.param(None, MemoryFacts(100, 60, "device"), id="none"),
        pytest.param(CgroupLimit(50, 20), MemoryFacts(50, 20, "cgroup"), id="tighter"),
        pytest.param(CgroupLimit(90, 80), MemoryFacts(90, 60, "device"), id="looser-than-what-is-free"),
    ],
)
def test_within_group(group: CgroupLimit | None, found: MemoryFacts) -> None:
    """A group's limit counts where it is the tighter one."""
    assert within_group(MemoryFacts(100, 60, "device"), group) == found


@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        pytest.param(None, MemoryFacts(100, 60, "device"), id="not-named"),
        pytest.param(40, MemoryFacts(40, 40, "max_memory"), id="tighter"),
        pytest.param(80, MemoryFacts(100, 60, "device"), id="more-than-is-free"),
        pytest.param(0, MemoryFacts(0, 0, "max_memory"), id="nothing-allowed"),
    ],
)
def test_limited(allowed: int | None, found: MemoryFacts) -> None:
    """`max_memory` counts where it is the tighter one."""
    assert limited(MemoryFacts(100, 60, "device"), allowed) == found


@pytest.mark.parametrize(
    ("device", "found"),
    [("cuda:0", 10 * 2**30), ("cuda", 10 * 2**30), ("cuda:1", 7), ("cpu", 123), ("mps:0", 5), ("cuda:2", None)],
)
def test_allowance(device: str, found: int | None) -> None:
    """Accelerators are named by index, the CPU and MPS by name."""
    max_memory = {0: "10GiB", 1: 7, "cpu": 123, "mps": 5}
    assert allowance(torch.device(device), max_memory) == found


@pytest.mark.parametrize("size", [123, "10GiB", "1.5GiB", "500MB", "10KiB", "2GB", "8Gb", "1mib"])
def test_sizes_are_read_as_accelerate_does(size: int | str) -> None:
    """Units mean what they mean to accelerate, a small b for bits too."""
    assert bytes_of(size) == convert_file_size_to_int(size)


@pytest.mark.parametrize("size", ["10 apples", "GiB", "", "10"])
def test_no_size(size: str) -> None:
    """What is no size is an error that shows how to write one."""
    with pytest.raises(ValueError, match="10GiB"):
        bytes_of(size)


def test_main_memory() -> None:
    """The CPU has what the system has, or less."""
    found = memory_of("cpu")
    assert 0 < found.free_bytes <= found.total_bytes <= psutil.virtual_memory().total


def test_main_memory_under_max_memory() -> None:
    """`max_memory` bounds the CPU too."""
    assert memory_of("cpu", {"cpu": "1MiB"}) == MemoryFacts(MB, MB, "max_memory")


@pytest.mark.needs("cuda")
def test_cuda_memory() -> None:
    """Blocks that torch's allocator keeps are free to this process."""
    before = memory_of("cuda:0")
    kept = torch.empty(64 * MB, dtype=torch.uint8, device="cuda:0")
    during = memory_of("cuda:0")
    del kept
    after = memory_of("cuda:0")
    assert during.free_bytes <= before.free_bytes - 64 * MB + 2 * MB
    assert after.free_bytes >= during.free_bytes + 64 * MB
    assert after.total_bytes == torch.cuda.get_device_properties(0).total_memory


@pytest.mark.needs("mps")
def test_mps_memory() -> None:
    """Unified memory: what Metal recommends, and no more than the system has left."""
    found = memory_of("mps")
    assert 0 < found.free_bytes <= found.total_bytes == torch.mps.recommended_max_memory()
