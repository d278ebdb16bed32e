"""The CPU that kernels are compiled for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from safe_dtype.kernels.target import llvm, target

binding = pytest.importorskip("llvmlite.binding", reason="the extra `fast`")


def test_is_this_cpu() -> None:
    """It is compiled for this CPU, as LLVM calls it."""
    cpu = target()
    assert llvm() is binding
    assert cpu is not None
    assert cpu.cpu == binding.get_host_cpu_name()
    assert cpu.llvm.count(".") == 2


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="an older CPU is made of one with AVX512"
)
@pytest.mark.parametrize(("capability", "without"), [("avx2", "+avx512"), ("default", "+avx")])
def test_keeps_to_what_torch_keeps_to(capability: str, without: str) -> None:
    """Where torch is held to the instructions of an older CPU, kernels are, too."""
    code = "from safe_dtype.kernels.target import target; print(target().features, target().halves)"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert without in (target() or pytest.fail("no target")).features
    assert without not in done.stdout
    assert done.stdout.endswith(f"{capability == 'avx2'}\n")


def test_without_llvmlite() -> None:
    """Without llvmlite there is nothing to compile with, and nothing is raised."""
    code = """
import sys
sys.modules["llvmlite"] = None
import torch
from safe_dtype.kernels.row_product import has_code
from safe_dtype.kernels.target import target
print(target(), has_code(torch.bfloat16, torch.bfloat16))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None False\n"
