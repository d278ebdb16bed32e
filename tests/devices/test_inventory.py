"""Which devices there are, and what torch and the system call them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import safe_dtype.devices
from safe_dtype.devices import default_device, detect, detect_one
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


@pytest.mark.parametrize("name", ["toaster", "cuda:99", "NVIDIA Tesla T4", ""])
def test_no_such_device(name: str) -> None:
    """A device that is not here is an error that lists those that are."""
    with pytest.raises(NoSuchDeviceError, match="cpu"):
        detect_one(name)


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
