"""An AOTInductor package, in `model.aoti.pt2`: native code for this kind of machine, and trusted like any binary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...dtypes import Dtype
from ..job import Dynamic
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
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / FILE))
    return load(folder)


def load(folder: Path) -> Run:
    """Load the package. Trust the folder first: it is native code."""
    package: Any = torch._inductor.aoti_load_package(str(folder / FILE))
    return lambda **given: dict(package(**given))
