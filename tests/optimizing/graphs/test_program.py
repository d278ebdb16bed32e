"""A model as a program of torch.export."""

from __future__ import annotations

import pytest
import torch
from optimizing.form_models import Branch, Mlp
from optimizing.zoo import ZOO

from safe_dtype.optimizing.graphs.program import dynamic_shapes, is_of_transformers, program_of
from safe_dtype.optimizing.nouns.job import Dynamic

INPUTS = {"x": torch.linspace(-1, 1, 32).reshape(2, 16)}


@pytest.mark.needs("torch>=2.13")
def test_program() -> None:
    """A program answers as its model does, in every batch size of its range; the model is left as it was."""
    model = Mlp().eval()
    program = program_of(model, INPUTS, Dynamic((1, 8)))
    assert "forward" not in vars(model)
    for rows in (1, 2, 8):
        x = torch.ones(rows, 16)
        expected = model(x)
        outputs = program.module()(x=x)
        assert list(outputs) == ["logits", "hidden"]
        assert all(torch.allclose(outputs[name], expected[name], atol=1e-6) for name in outputs)


def test_first_error(caplog: pytest.LogCaptureFixture) -> None:
    """Where no way works, the error of the first is raised, and the log has that of each."""
    with pytest.raises(Exception, match=r"[Dd]ata-dependent"):
        program_of(Branch().eval(), INPUTS, Dynamic())
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("safe_dtype")]
    assert [text.partition(" failed: ")[0] for text in logged] == ["torch.export", "torch.export, strict"]


@pytest.mark.needs("torch>=2.13")
def test_dynamic_shapes() -> None:
    """A declared dimension is a hint with its range; inputs without one are fixed, as all are without a range."""
    shapes = dynamic_shapes({"x": INPUTS["x"], "y": INPUTS["x"]}, Dynamic(dims={"x": {1: (4, 16)}}))
    assert shapes is not None
    assert shapes["y"] is None
    assert {dim: (hint.min, hint.max) for dim, hint in shapes["x"].items()} == {1: (4, 16)}
    assert dynamic_shapes(INPUTS, Dynamic()) is None


@pytest.mark.parametrize(("name", "is_one"), [("vit", True), ("branch", False)])
def test_is_of_transformers(name: str, is_one: bool) -> None:
    """The exporters of transformers are for its own models."""
    assert is_of_transformers(ZOO[name].model()) is is_one
