"""A form of another package: the module itself in a file, run in inference mode. Its entry point leads to `FORM`."""

from __future__ import annotations

from pathlib import Path

import torch

from safe_dtype.optimizing import Form
from safe_dtype.optimizing.graphs.flat import outputs_of
from safe_dtype.optimizing.nouns.form import BuildRequest, FileKind, Run

FILE = "model.snapshot"


def build(request: BuildRequest) -> Run:
    """Save the module, and return it loaded."""
    torch.save(request.model, request.folder / FILE)
    return load(request.folder)


def load(folder: Path) -> Run:
    """Load the module. Trust the folder first: it is unpickled."""
    model = torch.load(folder / FILE, weights_only=False)

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            return {name: output.clone() for name, output in outputs_of(model(**inputs)).items()}

    return run


FORM = Form(
    name="snapshot",
    rank=5,
    about="the module itself, in inference mode",
    build=build,
    load=load,
    files=(FileKind(".snapshot", "a module that is unpickled"),),
)
