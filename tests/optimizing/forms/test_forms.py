"""Every form is made, runs on other inputs than it was made with, is loaded in a fresh process, and agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from optimizing.form_models import Branch, Eigenvalues, Mlp
from optimizing.made import missing_here
from safetensors.torch import save_file

from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype
from safe_dtype.optimizing.attempts.load_model import save_module
from safe_dtype.optimizing.attempts.runner import run_attempt
from safe_dtype.optimizing.forms import form_named
from safe_dtype.optimizing.graphs.flat import flat_outputs, outputs_of
from safe_dtype.optimizing.nouns.job import Dynamic, Job
from safe_dtype.optimizing.nouns.record import FormAttempt, Outcome

pytestmark = pytest.mark.usefixtures("forked_children")
_TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def attempt(
    model: torch.nn.Module,
    batches: list[dict[str, torch.Tensor]],
    folder: Path,
    *,
    form: str,
    dtype: Dtype = FLOAT32,
    dynamic: Dynamic = Dynamic(batch=(1, 8)),  # noqa: B008  # frozen
) -> FormAttempt:
    """Try one form; the first batch is traced. "regional" compiles the submodule `first`."""
    files = []
    for number, batch in enumerate(batches):
        files.append(folder / f"{number}.safetensors")
        save_file(batch, files[-1])
    source, model_class = folder / "model", ""
    if isinstance(model, tf.PreTrainedModel):
        model.save_pretrained(source)
        model_class = type(model).__name__
    else:
        save_module(model, source)
    job = Job(
        source, model_class, dtype, form, folder / "attempt", files[0], tuple(files[1:]), dynamic=dynamic,
        regions=("first",),
    )  # fmt: skip
    return run_attempt(job, root=folder, seconds=300)


def skip_where_unavailable(form: str, dtype: Dtype = FLOAT32) -> None:
    """Skip the test with the form's own reason."""
    if reason := missing_here(form, dtype):
        pytest.skip(reason)


@pytest.mark.parametrize(
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


def test_branch_is_named(tmp_path: Path) -> None:
    """An export that a branch prevents names the line of the branch."""
    found = attempt(Branch(), [{"x": torch.ones(2, 16)}], tmp_path, form="export")
    assert found.outcome is Outcome.FAILED
    assert any("if x.sum() > 0" in site.code for site in found.sites), found


@pytest.mark.slow
def test_deprecation_is_logged(tmp_path: Path) -> None:
    """What torch says of TorchScript is in the log, and is no error."""
    skip_where_unavailable("torchscript")
    found = attempt(Mlp(), [{"x": torch.randn(2, 16)}], tmp_path, form="torchscript")
    assert found.outcome is Outcome.VERIFIED, found.reason
    assert "deprecated" in (tmp_path / found.log).read_text()


@pytest.mark.slow
def test_operator_is_named(tmp_path: Path) -> None:
    """An operator that ONNX has not is named in the reason."""
    skip_where_unavailable("onnx")
    found = attempt(Eigenvalues(), [{"x": torch.randn(2, 16)}], tmp_path, form="onnx")
    assert found.outcome is Outcome.FAILED
    assert "aten._linalg_eigh" in found.reason


def test_outputs_by_name() -> None:
    """Float tensors of nested answers come out in order, by dotted name; the rest stays out."""
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    answer = {"logits": one, "ids": torch.ones(1, dtype=torch.long), "states": (two, [three]), "cache": object()}
    assert list(outputs_of(answer)) == ["logits", "states.0", "states.1.0"]
    assert list(outputs_of(one)) == ["output"]
    with pytest.raises(TypeError, match="nothing to compare"):
        outputs_of({"ids": torch.ones(1, dtype=torch.long)})


def test_forward_is_put_back() -> None:
    """Flattening a model's outputs for an export leaves nothing on the model."""
    model = Mlp()
    with flat_outputs(model):
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
