"""A compiler makes graphs of the model, and of nothing that the guard does around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guarding.generators import tiny

from safe_dtype import guard, report
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.slow
@torch.no_grad()
def test_no_graph_of_the_guard() -> None:
    """A compiler that fails in a guarded model runs it frame by frame: what it then compiles is the model's."""
    files: set[str] = set()

    def backend(graph: Any, _inputs: Any) -> Any:
        files.update(trace for node in graph.graph.nodes if (trace := node.meta.get("stack_trace")))
        return graph.forward

    model = guard(tiny())
    compiled = torch.compile(model, backend=backend)
    with fault(model, DOWN, "cublas"):
        output = compiled(input_ids=IDS)
    assert torch.isfinite(output.logits).all()
    assert [event.module for event in report(model).events] == [DOWN]
    assert files
    assert not [trace for trace in files if "safe_dtype/guarding" in trace]
    torch.compiler.reset()
