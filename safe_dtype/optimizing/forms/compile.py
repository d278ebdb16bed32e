"""torch.compile of the model as one graph. It leaves no file."""

from __future__ import annotations

from functools import partial

from ..graphs.compiled import compiled, missing_for_inductor
from ..nouns.form import Form, GraphNeed

FORM = Form(
    name="compile",
    rank=40,
    about="torch.compile, as one graph; compiled again by whoever loads it",
    build=partial(compiled, fullgraph=True),
    graph=GraphNeed.WHOLE,
    missing_to_build=missing_for_inductor,
)
