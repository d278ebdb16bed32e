"""An AOTInductor package, in `model.aoti.pt2`: native code for this kind of machine, and trusted like any binary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...facts import Dtype
from ..nouns.job import Dynamic
from .compiler import missing_compiler
from .exported import program_of
from .maker import Run

FILE = "model.aoti.pt2"


def available(dtype: Dtype, device: str) -> str:  # noqa: ARG001  # inductor takes every dtype that eager takes
    """Inductor needs a compiler."""
    return missing_compiler(device)


def build(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], folder: Path, *, dynamic: Dynamic) -> Run:
    """Export, compile and package, and return the package loaded."""
    program = program_of(model, inputs, dynamic)
    # With its lower bound checked as well, a package that was traced with two rows or more refuses one.
    with torch.no_grad(), torch._inductor.config.patch({"aot_inductor.check_lowerbound": False}):
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / FILE))
    return load(folder)


def load(folder: Path) -> Run:
    """Load the package. Trust the folder first: it is native code."""
    # Otherwise a package answers nonsense to another dtype, other strides or other sizes, without a word: measured with
    # torch 2.13. Read when a package is first run, so it is set for this process.
    os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")
    package: Any = torch._inductor.aoti_load_package(str(folder / FILE))
    return lambda **given: dict(package(**given))
