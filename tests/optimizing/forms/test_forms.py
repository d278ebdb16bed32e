"""Every form is made, runs on other inputs than it was made with, is loaded in a fresh process, and agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from optimizing.form_models import Branch, Eigenvalues, Ids, Mlp
from optimizing.jobs import attempt, skip_where_unavailable

from safe_dtype.facts import BFLOAT16
from safe_dtype.optimizing.attempts.load_model import load_artifact
from safe_dtype.optimizing.forms import form_named
from safe_dtype.optimizing.graphs.flat import outputs_of
from safe_dtype.optimizing.nouns.job import Dynamic
from safe_dtype.optimizing.nouns.record import Outcome

pytestmark = pytest.mark.usefixtures("forked_children")
FORMS = pytest.mark.parametrize(
    "form",
    [
        "eager",
        "export",
        "torchscript",
        pytest.param("compile", marks=pytest.mark.slow),
        "onnx",
        pytest.param("partial", marks=pytest.mark.slow),
        pytest.param("regional", marks=pytest.mark.slow),
        pytest.param("aoti", marks=pytest.mark.slow),
    ],
    ids=str,
)
_TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


@pytest.mark.needs("torch>=2.13")
@FORMS
def test_form(form: str, tmp_path: Path) -> None:
    """A form that is available verifies a plain module, also at another batch size; files are loaded again."""
    skip_where_unavailable(form)
    batches = [{"x": torch.randn(2, 16)}, {"x": torch.randn(5, 16)}]
    found = attempt(Mlp(), batches, tmp_path, form=form)
    assert found.outcome is Outcome.VERIFIED, found.reason
    leaves_a_file = form_named(form).leaves_a_file
    stages = ["traced", "held out"] + ["reloaded"] * leaves_a_file
    assert [stage.name for stage in found.stages] == stages
    assert all(stage.distance.relative < 1e-5 for stage in found.stages)
    assert (found.bytes > 0) is leaves_a_file
    assert bool(found.artifact) is leaves_a_file
    assert found.speedup is not None
    assert found.seconds.build is not None


@pytest.mark.needs("torch>=2.13")
@FORMS
def test_other_dtypes(form: str, tmp_path: Path) -> None:
    """Ids, counts and masks come back from every form, with their dtypes, also from what was loaded again."""
    skip_where_unavailable(form)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    batches = [{"x": torch.randn(2, 16), "mask": mask}, {"x": torch.randn(5, 16), "mask": mask[:1].repeat(5, 1)}]
    found = attempt(Ids(), batches, tmp_path, form=form)
    assert found.outcome is Outcome.VERIFIED, found.reason
    assert all(stage.distance.equal_entries == 1 for stage in found.stages)
    if form_named(form).leaves_a_file:
        run = load_artifact(form_named(form), tmp_path / found.artifact, "")
        expected = outputs_of(Ids()(**batches[1]))
        torch.testing.assert_close(run(**batches[1]), expected)  # their dtypes, too


@pytest.mark.slow
def test_vit(tmp_path: Path) -> None:
    """A model of transformers is exported in bfloat16, as `from_pretrained` loads it."""
    torch.manual_seed(0)
    model = tf.ViTForImageClassification(tf.ViTConfig(**_TINY, image_size=32, patch_size=8, num_labels=5))
    batches = [{"pixel_values": torch.randn(size, 3, 32, 32)} for size in (2, 3)]
    found = attempt(model, batches, tmp_path, form="export", dtype=BFLOAT16)
    assert found.outcome is Outcome.VERIFIED, found.reason
    assert found.stages[-1].name == "reloaded"
    assert "transformers' exporter worked" in (tmp_path / found.log).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["export", "compile", "aoti", "onnx"], ids=str)
def test_qwen3(form: str, tmp_path: Path) -> None:
    """A language model takes other batches and other lengths within the ranges that were asked for."""
    skip_where_unavailable(form)
    torch.manual_seed(0)
    model = tf.Qwen3ForCausalLM(tf.Qwen3Config(**_TINY, vocab_size=96, num_key_value_heads=2, head_dim=8))
    names = ("input_ids", "attention_mask")
    batches = [
        dict(zip(names, (torch.randint(3, 96, shape), torch.ones(shape, dtype=torch.long)), strict=True))
        for shape in ((2, 9), (3, 5))
    ]
    lengths = {name: {1: (2, 64)} for name in names}
    found = attempt(model, batches, tmp_path, form=form, dynamic=Dynamic((1, 8), lengths))
    assert found.outcome is Outcome.VERIFIED, found.reason


@pytest.mark.slow
def test_fixed_shapes(tmp_path: Path) -> None:
    """A form made for one batch size says so when it is given another."""
    batches = [{"x": torch.randn(2, 16)}, {"x": torch.randn(5, 16)}]
    found = attempt(Mlp(), batches, tmp_path, form="export", dynamic=Dynamic())
    assert found.outcome is Outcome.FAILED
    assert found.reason.startswith("while comparing on the held out inputs: ")
    assert [stage.name for stage in found.stages] == ["traced"]


@pytest.mark.needs("torch>=2.13")
def test_branch_is_named(tmp_path: Path) -> None:
    """An export that a branch prevents names the line of the branch."""
    found = attempt(Branch(), [{"x": torch.ones(2, 16)}], tmp_path, form="export")
    assert found.outcome is Outcome.FAILED
    assert any("if x.sum() > 0" in site.code for site in found.sites), found


@pytest.mark.slow
def test_operator_is_named(tmp_path: Path) -> None:
    """An operator that ONNX has not is named in the reason."""
    skip_where_unavailable("onnx")
    found = attempt(Eigenvalues(), [{"x": torch.randn(2, 16)}], tmp_path, form="onnx")
    assert found.outcome is Outcome.FAILED
    assert "aten._linalg_eigh" in found.reason
