"""Which devices there are, and what torch and the system call them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

import safe_dtype.devices
from safe_dtype.devices import default_device, detect, detect_one
from safe_dtype.devices.processor import cpu_capability
from safe_dtype.devices.settings import kernel_environment, settings
from safe_dtype.errors import NoSuchDeviceError


def test_every_device_is_found() -> None:
    """Accelerators come first, the CPU last, each as torch names it, none with verdicts."""
    found = detect()
    names = [facts.device for facts in found]
    assert names[-1] == "cpu"
    assert len(names) == len(set(names))
    expected = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    assert len(names) == expected + 1
    for facts in found:
        torch.empty(1, device=facts.device)
        assert facts.name
        assert facts.memory.total_bytes > 0
        assert not facts.verdicts


def test_default_device() -> None:
    """The default is the first accelerator, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    assert default_device() == (f"{accelerator}:0" if accelerator else "cpu")


@pytest.mark.parametrize("name", ["cpu", "CPU", "cpu:0"])
def test_cpu(name: str) -> None:
    """The CPU has a name, the flags that matter, a row in the prior table, and the settings that change kernels."""
    facts = detect_one(name)
    assert facts.device == "cpu"
    assert facts.vendor == "cpu"
    assert facts.capability.split()[0] in ("x86_64", "arm64", "ppc64le")
    assert facts.family.startswith("cpu")
    assert facts.prior_order
    assert dict(facts.versions)["torch"] == torch.__version__
    assert dict(facts.settings)["threads"] == str(torch.get_num_threads())


@pytest.mark.needs("amx")
def test_amx_is_seen() -> None:
    """AMX is among the flags."""
    assert "amx_bf16" in cpu_capability().split()


@pytest.mark.needs("x86")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch cannot be asked")
def test_flags_agree_with_torch() -> None:
    """The system and torch see the same instructions."""
    said = torch.cpu.get_capabilities()
    for flag in ("avx2", "avx512_bf16", "avx512_fp16"):
        assert (flag in cpu_capability().split()) == bool(said[flag])


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux lists its CPU in a file")
def test_cpu_name_is_the_systems() -> None:
    """The name is the product's, not the architecture's."""
    assert detect_one("cpu").name not in ("", "x86_64", "aarch64", "CPU")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", "NVIDIA Tesla T4", ""])
def test_no_such_device(name: str) -> None:
    """A device that is not here is an error that lists those that are."""
    with pytest.raises(NoSuchDeviceError, match="cpu"):
        detect_one(name)


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


def test_public_names() -> None:
    """The package exports its list, and nothing else."""
    assert dir(safe_dtype.devices) == sorted(safe_dtype.devices.__all__)
    for name in safe_dtype.devices.__all__:
        assert getattr(safe_dtype.devices, name)
    with pytest.raises(AttributeError, match="no attribute 'guess'"):
        safe_dtype.devices.guess  # noqa: B018


def test_importing_loads_no_torch() -> None:
    """Importing the package does not import torch."""
    code = "import sys, safe_dtype.devices; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.needs("cuda")
def test_cuda() -> None:
    """A CUDA device has its capability, its driver, a row in the prior table."""
    facts = detect_one("cuda")
    assert facts.device == "cuda:0"
    assert facts.vendor == "nvidia"
    assert facts.capability == "{}.{}".format(*torch.cuda.get_device_capability(0))
    assert facts.name == torch.cuda.get_device_name(0)
    assert facts.driver
    assert facts.family.startswith("nvidia")


@pytest.mark.needs("rocm")
def test_rocm() -> None:
    """A ROCm device is known by its gfx architecture, without its feature suffixes."""
    facts = detect_one("cuda")
    assert facts.vendor == "amd"
    assert facts.capability.startswith("gfx")
    assert ":" not in facts.capability


@pytest.mark.needs("xpu")
def test_xpu() -> None:
    """An Intel GPU has its driver."""
    facts = detect_one("xpu")
    assert facts.vendor == "intel_gpu"
    assert facts.driver


@pytest.mark.needs("mps")
def test_mps() -> None:
    """An Apple GPU is known by its chip."""
    facts = detect_one("mps")
    assert facts.vendor == "apple"
    assert facts.capability.startswith(("M", "Intel"))
