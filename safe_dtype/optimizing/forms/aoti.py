"""An AOTInductor package, in `model.aoti.pt2`: native code for this kind of machine, and trusted like any binary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..graphs.compiled import missing_for_inductor
from ..graphs.program import program_of
from ..nouns.form import BuildRequest, FileKind, Form, GraphNeed, Run

FILE = "model.aoti.pt2"


def build(request: BuildRequest) -> Run:
    """Export, compile and package, and return the package loaded."""
    program = program_of(request.model, request.inputs, request.dynamic)
    # With a check of lower bounds, a package that was traced with two rows or more would refuse one row.
    with torch.no_grad(), torch._inductor.config.patch({"aot_inductor.check_lowerbound": False}):
        torch._inductor.aoti_compile_and_package(program, package_path=str(request.folder / FILE))
    return load(request.folder)


def load(folder: Path) -> Run:
    """Load the package. Trust the folder first: it is native code."""
    # Otherwise a package returns wrong numbers for another dtype, other strides or other sizes, without an error
    # (measured with torch 2.13). It is read when a package first runs, so it is set for the whole process.
    os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")
    package: Any = torch._inductor.aoti_load_package(str(folder / FILE))
    return lambda **inputs: dict(package(**inputs))


FORM = Form(
    name="aoti",
    rank=20,
    about="native code for this machine, from the exported program",
    build=build,
    load=load,
    files=(FileKind(".aoti.pt2", "an AOTInductor package, which is native code", mark=r"data/aotinductor/.+"),),
    graph=GraphNeed.EXPORTED,
    missing_to_build=missing_for_inductor,  # a finished package needs none of it
    of_one_torch=True,
    of_one_machine=True,
)
