"""The CPU, as the system tells it."""

from __future__ import annotations

import platform

import pytest
import torch

from safe_dtype.devices import detect_one
from safe_dtype.devices.processor import cpu_capability


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
