"""A program of torch.export, in `model.pt2`. Only the version of torch that wrote it reads it, and reading runs code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..graphs.program import program_of
from ..nouns.form import BuildRequest, FileKind, Form, GraphNeed, Run

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.pt2"


def build(request: BuildRequest) -> Run:
    """Export, save, and return the program that was saved."""
    program = program_of(request.model, request.inputs, request.dynamic)
    torch.export.save(program, str(request.folder / FILE))
    return _runs(program)


def load(folder: Path) -> Run:
    """Load `model.pt2`. Trust the folder first: torch.export.load unpickles."""
    return _runs(torch.export.load(str(folder / FILE)))


def _runs(program: ExportedProgram) -> Run:
    module = program.module()
    return lambda **inputs: dict(module(**inputs))


FORM = Form(
    name="export",
    rank=10,
    about="a program of torch.export, for this version of torch",
    build=build,
    load=load,
    files=(FileKind(".pt2", "a program of torch.export, which is unpickled", mark=r"models/[^/]+\.json"),),
    graph=GraphNeed.OWN,
    of_one_torch=True,
)
