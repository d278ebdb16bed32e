"""torch.compile graph by graph, with Python between the graphs. It leaves no file."""

from __future__ import annotations

from functools import partial

from ..graphs.compiled import compiled, missing_for_inductor
from ..nouns.form import Form, GraphNeed

FORM = Form(
    name="partial",
    rank=60,
    about="torch.compile, graph by graph, where the whole does not capture",
    build=partial(compiled, fullgraph=False),
    graph=GraphNeed.PIECES,
    missing_to_build=missing_for_inductor,
)
