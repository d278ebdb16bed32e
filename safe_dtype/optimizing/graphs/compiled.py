"""What the forms of torch.compile have in common: what inductor needs, and the first call, which compiles."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..nouns.form import BuildRequest, FormTarget, Run
from ..nouns.job import Dynamic
from .flat import outputs_of

_TRITON_ON, _WITHOUT_TRITON = ("cuda", "xpu"), ("cpu", "mps")
_LEAST_CAPABILITY = 7  # of a GPU of NVIDIA: triton refuses older ones (torch.utils._triton.has_triton)


def missing_for_inductor(target: FormTarget) -> str:
    """Return what inductor needs and `target` lacks; empty where nothing is missing."""
    if target.environment["compiler"] is None:
        return "a C++ compiler"  # inductor builds its launchers with it on a GPU, too
    kind, _, number = target.device.partition(":")
    if kind not in _TRITON_ON:
        return (
            ""
            if kind in _WITHOUT_TRITON or _has_inductor(kind)
            else f"another device than {kind}: inductor has no code for it"
        )
    if absent := target.without("triton"):
        return absent
    gpus = target.environment.get("gpus") or () if kind == "cuda" and not target.environment.get("hip") else ()
    if int(number or 0) < len(gpus) and float(gpus[int(number or 0)]["capability"]) < _LEAST_CAPABILITY:
        return f"a GPU of compute capability {_LEAST_CAPABILITY}.0 or more"
    return ""


def _has_inductor(kind: str) -> bool:
    """Whether the plugin of a device has registered its code generator with inductor. Imports inductor: 2 s."""
    from torch._inductor.codegen.common import get_scheduling_for_device, init_backend_registration

    init_backend_registration()
    return get_scheduling_for_device(kind) is not None


def compiled(request: BuildRequest, *, fullgraph: bool) -> Run:
    """Compile the model for the inputs of `request`: as one graph, or graph by graph with Python between them.

    Raises:
        Exception: What torch.compile raises, where `fullgraph` is True and the model has more than one graph.
    """
    module = torch.compile(request.model, fullgraph=fullgraph)
    run: Run = lambda **inputs: outputs_of(module(**inputs))  # noqa: E731
    run(**marked(request.inputs, request.dynamic))  # the first call compiles
    return run


def marked(inputs: Mapping[str, torch.Tensor], dynamic: Dynamic) -> dict[str, torch.Tensor]:
    """Return the inputs with their varying dimensions marked. One of size 1 stays fixed: other sizes recompile."""
    copies = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    for name, tensor in copies.items():
        for dim in dynamic.of(name):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
    return copies
