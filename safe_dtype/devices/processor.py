"""The CPU: its name, the instructions that matter to dtypes, the size of its last-level cache."""

from __future__ import annotations

import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import torch

# In /proc/cpuinfo's words. Arm says bf16, asimdhp (float16 arithmetic), i8mm, sve.
_FLAGS_THAT_MATTER = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_fp16",
    "asimdhp", "bf16", "i8mm", "sve",
)  # fmt: skip
_ARCHITECTURES = {"AMD64": "x86_64", "aarch64": "arm64"}
_OTHER_WORDS = {"avx512_f": "avx512f", "fp16_arith": "asimdhp"}  # torch.cpu.get_capabilities() -> /proc/cpuinfo
_MAC_FEATURES = {
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.avx2_0": "avx2",
}

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 * 2**20


@cache
def cpu_name() -> str:
    """Return the product name."""
    said_by_linux = _first_core().get("model name", "")
    said_by_mac = _sysctl("machdep.cpu.brand_string") if platform.system() == "Darwin" else ""
    return said_by_linux or said_by_mac or str(_capabilities().get("cpu_name") or platform.processor() or "CPU")


@cache
def cpu_capability() -> str:
    """Return the architecture and the flags that matter, as one text: "x86_64 avx2 avx512f"."""
    machine = platform.machine()
    present = _flags()
    return " ".join((_ARCHITECTURES.get(machine, machine), *(flag for flag in _FLAGS_THAT_MATTER if flag in present)))


@cache
def last_level_cache_bytes() -> int:
    """Return the size of the largest cache of core 0, in bytes; 32 MiB where the system does not say."""
    sizes = [_cache_bytes(file.read_text()) for file in _CACHES.glob("index*/size")]
    return max(sizes, default=_USUAL_CACHE)


def _cache_bytes(text: str) -> int:
    """Read "32768K"."""
    number, unit = text.strip()[:-1], text.strip()[-1:]
    return int(number) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(unit, 0) if number.isdigit() else 0


def _flags() -> set[str]:
    core = _first_core()
    listed = core.get("flags") or core.get("Features")
    if listed:
        return set(listed.split())
    if platform.system() == "Darwin":
        return {flag for question, flag in _MAC_FEATURES.items() if _sysctl(question) == "1"}
    return {_OTHER_WORDS.get(name, name) for name, there in _capabilities().items() if there is True}


@cache
def _first_core() -> dict[str, str]:
    if not _CPUINFO.exists():
        return {}
    first = _CPUINFO.read_text(errors="replace").partition("\n\n")[0]
    return dict(re.findall(r"^([^:\n]+?)\s*: (.*)$", first, re.MULTILINE))


def _capabilities() -> dict[str, object]:
    # torch.cpu.get_capabilities is younger than torch 2.6.
    ask = getattr(torch.cpu, "get_capabilities", None)
    return dict(ask()) if ask else {}


@cache
def _sysctl(name: str) -> str:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()
