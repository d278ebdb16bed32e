"""What decides, besides the hardware, which kernels torch runs: environment, threads, precision switches, versions."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping

import torch

# Read by torch, oneDNN, MKL, OpenMP, cuBLAS, cuDNN, ROCm and MPS before or while they choose a kernel. An allocator or
# an OpenMP runtime put in by LD_PRELOAD changes the times as well.
_CHANGES_KERNELS = re.compile(
    r"(ONEDNN|DNNL|MKL|ATEN|OMP|GOMP|KMP|PYTORCH|TORCH_BLAS|TORCH_ROCM|TORCH_CPP|CUBLAS|CUDNN|NVIDIA_TF32|CUDA_LAUNCH"
    r"|HSA|HIP|HIPBLASLT|ROCBLAS|MIOPEN|IPEX|ASCEND)_\w+|LD_PRELOAD|DYLD_INSERT_LIBRARIES"
)
_CHANGES_NOTHING = re.compile(r"\w*(VERBOSE|LOG|VISIBLE_DEVICES|HOME|PATH)\w*")


def kernel_environment(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the variables of `environment` that change kernels or their speed, sorted."""
    return tuple(
        (name, value)
        for name, value in sorted(environment.items())
        if _CHANGES_KERNELS.fullmatch(name) and not _CHANGES_NOTHING.fullmatch(name)
    )


def settings() -> tuple[tuple[str, str], ...]:
    """Return everything set in this process that changes kernels."""
    return (
        *kernel_environment(os.environ),
        # ATEN_CPU_CAPABILITY only asks; this is what torch took.
        ("cpu_capability", torch.backends.cpu.get_cpu_capability()),
        ("float32_matmul_precision", float32_precision()),
        ("mkldnn", str(torch.backends.mkldnn.enabled)),
        ("threads", str(torch.get_num_threads())),
    )


def float32_precision() -> str:
    """Return torch's word for what float32 products may use inside: "highest", "high", "medium", or "mixed"."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set per backend, through both the old and the new switches
        return "mixed"


def versions() -> tuple[tuple[str, str], ...]:
    """Return the versions that a report needs, "" left out."""
    known = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
    }
    return tuple((name, str(version)) for name, version in known.items() if version)
