"""torch.compile: the whole graph at once, some submodules, or graph by graph. It leaves no file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from ...facts import Dtype
from ..nouns.job import Dynamic
from .compiler import missing_compiler
from .flat import outputs_of
from .maker import Build, Run


def available(dtype: Dtype, device: str) -> str:  # noqa: ARG001  # inductor takes every dtype that eager takes
    """Inductor needs a compiler."""
    return missing_compiler(device)


def build_whole(
    model: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    folder: Path,  # noqa: ARG001
    *,
    dynamic: Dynamic,
) -> Run:
    """Compile the model as one graph; it is an error where it has more."""
    return _compile(model, inputs, dynamic, fullgraph=True)


def build_partial(
    model: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    folder: Path,  # noqa: ARG001
    *,
    dynamic: Dynamic,
) -> Run:
    """Compile graph by graph, and run in Python what lies between."""
    return _compile(model, inputs, dynamic, fullgraph=False)


def regional(regions: tuple[str, ...]) -> Build:
    """Return what compiles the submodules named in `regions`, each whole, in place."""
    return partial(_build_regional, regions=regions)


def _build_regional(
    model: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    folder: Path,  # noqa: ARG001
    *,
    dynamic: Dynamic,
    regions: tuple[str, ...],
) -> Run:
    if not regions:
        raise ValueError("No submodule of this model captures whole.")
    for name in regions:
        model.get_submodule(name).compile(fullgraph=True)
    run: Run = lambda **given: outputs_of(model(**given))  # noqa: E731
    run(**_marked(inputs, dynamic))
    return run


def _compile(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], dynamic: Dynamic, *, fullgraph: bool) -> Run:
    compiled = torch.compile(model, fullgraph=fullgraph)
    run: Run = lambda **given: outputs_of(compiled(**given))  # noqa: E731
    run(**_marked(inputs, dynamic))  # torch.compile works at the first call
    return run


def _marked(inputs: Mapping[str, torch.Tensor], dynamic: Dynamic) -> dict[str, torch.Tensor]:
    """Return the inputs with their varying dimensions marked; a dimension of size 1 is left to a recompilation."""
    marked = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    for name, tensor in marked.items():
        for dim in dynamic.of(name):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return marked
