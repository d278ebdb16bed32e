"""Accelerators, where this machine has some."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.devices import detect_one


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
