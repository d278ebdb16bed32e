"""torch.compile of the largest submodules that capture whole, in place. It leaves no file."""

from __future__ import annotations

from ..graphs.compiled import marked, missing_for_inductor
from ..graphs.flat import outputs_of
from ..nouns.form import BuildRequest, Form, GraphNeed, Run


def build(request: BuildRequest) -> Run:
    """Compile the submodules of `request.regions`, each whole.

    Raises:
        ValueError: If there are none.
    """
    if not request.regions:
        raise ValueError("No submodule of this model captures whole.")
    for name in request.regions:
        request.model.get_submodule(name).compile(fullgraph=True)
    run: Run = lambda **inputs: outputs_of(request.model(**inputs))  # noqa: E731
    run(**marked(request.inputs, request.dynamic))
    return run


FORM = Form(
    name="regional",
    rank=50,
    about="torch.compile of the parts that capture, where the whole does not",
    build=build,
    graph=GraphNeed.REGIONS,
    missing_to_build=missing_for_inductor,
    in_place=True,
)
