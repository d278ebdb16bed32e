"""The CPU that kernels are compiled for: this one, held to the instructions that torch was told to keep to."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# What kernels are written for: 64-bit, the lowest byte first.
_ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm64")
# What torch runs without where ATEN_CPU_CAPABILITY holds it to an older CPU.
_NOT_IN = {"AVX2": ("avx512", "avx10", "amx"), "DEFAULT": ("avx", "amx", "fma", "f16c", "vaes", "vpclmul")}


_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True, slots=True)
class CompileTarget:
    """One CPU in LLVM's words. Code for one target is wrong, or ends the process, on another."""

    triple: str
    cpu: str  # whose timings the instructions are ordered for
    features: str  # "+avx2,-avx512f,...", every one that LLVM knows of
    llvm: str

    @property
    def halves(self) -> bool:
        """Whether it converts float16 itself: elsewhere LLVM calls a function that need not be there."""
        return "+f16c" in self.features.split(",") or not self.triple.startswith("x86")

    @property
    def sums(self) -> int:
        """How many vectors of 32 floats stay in its registers beside what they are multiplied by."""
        features = self.features.split(",")
        if "+avx512f" in features:
            return 12  # of 16: 32 registers of 16 floats
        return 3 if "+avx" in features or not self.triple.startswith("x86") else 1

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of floats whose sums stay in its registers beside what they are multiplied by."""
        features = self.features.split(",")
        if "+avx512f" in features:
            return 8, 32
        return (4, 16) if "+avx" in features or not self.triple.startswith("x86") else (2, 16)


def llvm() -> Any:
    """Return `llvmlite.binding`; None where it is not installed, or there is no code for this kind of CPU."""
    return _llvm() if platform.machine().lower() in _ARCHITECTURES else None


def target() -> CompileTarget | None:
    """Return what to compile for; None where nothing can be compiled."""
    binding = llvm()
    return None if binding is None else _target(binding, torch.backends.cpu.get_cpu_capability())


def name_in_code(dtype: torch.dtype) -> str | None:
    """Return the name of a float that code can be compiled for on this machine; None of any other dtype."""
    name, cpu = _NAMES.get(dtype), target()
    return None if name is None or cpu is None or (dtype is torch.float16 and not cpu.halves) else name


def code_of_floats(dtype: torch.dtype) -> tuple[str] | None:
    """Return what code for one float is written from; None where there is none on this machine."""
    name = name_in_code(dtype)
    return None if name is None else (name,)


def code_of_tiles(dtype: torch.dtype) -> tuple[str, ...] | None:
    """Return what code for one float is written from that computes in tiles; None where there is none on this machine."""
    name, cpu = name_in_code(dtype), target()
    return None if name is None or cpu is None else (name, *map(str, cpu.tile))


@cache
def _llvm() -> Any:
    try:
        import llvmlite.binding as binding
    except (ImportError, OSError):  # not installed, or its library does not load here
        return None
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@cache
def _target(binding: Any, capability: str) -> CompileTarget:
    absent = _NOT_IN.get(capability, ())
    flags = binding.get_host_cpu_features()
    features = (
        f"{'+' if there and not name.startswith(absent) else '-'}{name}" for name, there in sorted(flags.items())
    )
    version = ".".join(map(str, binding.llvm_version_info))
    return CompileTarget(binding.get_process_triple(), binding.get_host_cpu_name(), ",".join(features), version)
