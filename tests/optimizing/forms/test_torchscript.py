"""A trace of TorchScript."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizing.form_models import Branch, Mlp
from optimizing.jobs import attempt, skip_where_unavailable

from safe_dtype.optimizing.forms import torchscript
from safe_dtype.optimizing.nouns.form import BuildRequest, FormTarget
from safe_dtype.optimizing.nouns.job import Dynamic
from safe_dtype.optimizing.nouns.record import Outcome

pytestmark = pytest.mark.usefixtures("forked_children")


def test_trace_is_blind(tmp_path: Path) -> None:
    """A trace of a branch is right on the traced batch and wrong on a batch that goes the other way, and is refused."""
    skip_where_unavailable("torchscript")
    batches = [{"x": torch.ones(2, 16)}, {"x": -torch.ones(2, 16)}]
    found = attempt(Branch(), batches, tmp_path, form="torchscript")
    assert found.outcome is Outcome.WRONG
    traced, held_out = found.stages
    assert (traced.distance.max_abs, traced.problem) == (0.0, "")
    assert held_out.distance.relative > 0.1
    assert found.reason == f"held out: {held_out.problem}"
    assert found.seconds.run is None, "a wrong form is not timed"


@pytest.mark.slow
def test_deprecation_is_logged(tmp_path: Path) -> None:
    """What torch says of TorchScript is in the log, and is no error."""
    skip_where_unavailable("torchscript")
    found = attempt(Mlp(), [{"x": torch.randn(2, 16)}], tmp_path, form="torchscript")
    assert found.outcome is Outcome.VERIFIED, found.reason
    assert "deprecated" in (tmp_path / found.log).read_text()


def test_files(tmp_path: Path) -> None:
    """A trace and the names of its tensors are two files, from which it is loaded."""
    skip_where_unavailable("torchscript")
    inputs = {"x": torch.linspace(-1, 1, 32).reshape(2, 16)}
    model = Mlp().eval()
    with torch.no_grad():
        expected = model(**inputs)
        torchscript.FORM.build(BuildRequest(model, inputs, tmp_path, Dynamic((1, 8))))
        outputs = torchscript.load(tmp_path)(**inputs)
    assert sorted(file.name for file in tmp_path.iterdir()) == [torchscript.FILE, torchscript.NAMES]
    assert list(outputs) == ["logits", "hidden"]
    assert all(torch.equal(outputs[name], expected[name]) for name in outputs)


@pytest.mark.parametrize(
    ("python", "missing"), [("3.13.1", ""), ("3.14.0", "a Python older than 3.14, where torch.jit is supported")]
)
def test_python(python: str, missing: str) -> None:
    """torch.jit needs a Python older than 3.14, to build and to load."""
    target = FormTarget({"python": python})
    assert torchscript.FORM.missing_to_build(target) == torchscript.FORM.missing_to_load(target) == missing
