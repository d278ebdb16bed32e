"""What changes kernels besides the hardware."""

from __future__ import annotations

import torch

from safe_dtype.devices.settings import kernel_environment, settings


def test_environment() -> None:
    """What changes kernels is kept, what only prints or hides devices is not."""
    environment = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "DNNL_DEFAULT_FPMATH_MODE": "BF16",
        "MKL_NUM_THREADS": "2",
        "OMP_NUM_THREADS": "2",
        "NVIDIA_TF32_OVERRIDE": "0",
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",
        "HSA_OVERRIDE_GFX_VERSION": "10.3.0",
        "LD_PRELOAD": "libjemalloc.so",
        "ONEDNN_VERBOSE": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "HIP_VISIBLE_DEVICES": "0",
        "OMPI_COMM_WORLD_RANK": "3",
        "PATH": "/bin",
        "HF_TOKEN": "secret",
    }
    assert [name for name, _ in kernel_environment(environment)] == sorted(list(environment)[:9])


def test_precision_is_a_setting() -> None:
    """The precision of float32 products is part of what was measured."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert dict(settings())["float32_matmul_precision"] == "high"
    finally:
        torch.set_float32_matmul_precision(before)
