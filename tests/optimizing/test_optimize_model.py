"""Real models, tiny and random: each ends with a verified form that loads, or with a status that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizing.form_models import Mlp
from optimizing.zoo import ZOO
from safetensors.torch import load_file

from safe_dtype.errors import BackupError, EnvironmentNotFitError, NotOptimizableError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.optimizing import Dynamic, Optimization, Status, load_optimized, optimize, read_record
from safe_dtype.optimizing.environment import hashes
from safe_dtype.optimizing.nouns.job import Job
from safe_dtype.optimizing.nouns.record import Outcome

pytestmark = pytest.mark.usefixtures("forked_children")
SECONDS = 240.0


def saved(name: str, tmp_path: Path) -> Path:
    """Return a folder with a model of the zoo."""
    folder = tmp_path / name
    ZOO[name].model().save_pretrained(folder)
    return folder


def agrees(out: Path, found: Optimization) -> None:
    """Hold what was made, loaded in this process, against the original in its dtype, on every batch."""
    made = load_optimized(out)
    for batch in found.batches:
        inputs = load_file(out / batch.file)
        answer, eager = made(**inputs), made.eager()
        dtype = getattr(torch, made.dtype.name)
        with torch.no_grad():
            expected = eager(**{n: one.to(dtype) if one.is_floating_point() else one for n, one in inputs.items()})
        logits = expected if isinstance(expected, torch.Tensor) else next(iter(expected.values()))
        first = next(iter(answer.values()))
        assert torch.allclose(first.float(), logits.float(), atol=0.05 * float(logits.abs().max()), rtol=0)
    assert not made.fell_back


def test_exported(tmp_path: Path) -> None:
    """A model on the disk becomes a program that loads here; its own files stay as they are, and a copy is kept."""
    folder, out = saved("vit", tmp_path), tmp_path / "out"
    before = hashes(folder)
    found = optimize(folder, out=out, form="export", dtype="float32", dynamic=Dynamic(batch=(1, 4)), seconds=SECONDS)
    assert (found.status, found.winner.form, found.winner.dtype) == (Status.REACHED, "export", FLOAT32)
    assert [stage.name for stage in found.winner.stages] == ["traced", "held out", "reloaded"]
    assert {batch.tensors["pixel_values"]["shape"][0] for batch in found.batches} == {1, 2, 4}
    assert hashes(folder) == before == hashes(out / "original") == dict(found.files)
    assert read_record(out) == found
    assert "# vit, optimized" in (out / "report.md").read_text()
    assert (out / "report.svg").read_text().startswith("<svg")
    agrees(out, found)


def test_somebody_elses_folder(tmp_path: Path) -> None:
    """A folder in which names are taken by somebody else is left alone."""
    (tmp_path / "out" / "inputs").mkdir(parents=True)
    (tmp_path / "out" / "inputs" / "mine").write_text("precious")
    with pytest.raises(BackupError, match="has inputs of somebody else"):
        optimize(saved("vit", tmp_path), out=tmp_path / "out")
    assert (tmp_path / "out" / "inputs" / "mine").read_text() == "precious"


def test_unknown_inputs(tmp_path: Path) -> None:
    """A module whose inputs nobody knows needs some; nothing is left but the original."""
    with pytest.raises(NotOptimizableError, match="pass inputs="):
        optimize(ZOO["branch"].model(), out=tmp_path / "out")


def test_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that was asked for and cannot be made here is told before anything is done."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EnvironmentNotFitError, match="C\\+\\+ compiler"):
        optimize(saved("vit", tmp_path), out=tmp_path / "out", form="aoti")
    assert not (tmp_path / "out").exists()


WHOLE = (
    "sapiens2", "sapiens2_pose", "sapiens2_normal", "sapiens2_pointmap", "sapiens2_matting", "segformer", "upernet",
    "mask2former", "vit", "qwen3", "whisper", "jetmoe",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole(name: str, tmp_path: Path) -> None:
    """What captures as one graph is exported in bfloat16, also where a count says otherwise, as of JetMoe."""
    out = tmp_path / "out"
    found = optimize(saved(name, tmp_path), out=out, form="export", dtype="bfloat16", seconds=SECONDS)
    assert (found.status, found.winner.form, found.winner.dtype) == (Status.REACHED, "export", BFLOAT16), found.why
    assert found.graphs["whole"]
    agrees(out, found)


@pytest.mark.slow
def test_remedy(tmp_path: Path) -> None:
    """Mixtral with eager experts does not capture; with another way to call the same experts it does."""
    out = tmp_path / "out"
    found = optimize(ZOO["mixtral_eager"].model(), out=out, form="export", dtype="float32", seconds=SECONDS)
    assert found.status is Status.REACHED, found.why
    assert found.winner.remedies == ("experts_implementation=batched_mm",)
    assert not found.graphs["whole"]
    assert found.graphs["sites"][0]["code"] == "for expert_idx in expert_hit:"
    agrees(out, found)


def test_users_limit(tmp_path: Path) -> None:
    """The user's limit is judged for every form, against eager in float32, and stays in the record."""
    inputs = {"x": torch.randn(4, 16, generator=torch.Generator().manual_seed(0))}
    out = tmp_path / "out"
    found = optimize(Mlp(), inputs, out=out, form="export", dtype="float32", max_drift=1e-3, seconds=SECONDS)
    assert (found.status, found.winner.form, found.max_drift) == (Status.REACHED, "export", 1e-3)
    jobs = [Job.read(file) for file in (out / "attempts").glob("*export*/*.job.json")]
    assert {job.stages[0] for job in jobs} == {"traced", "reloaded"}
    for job in jobs:
        assert job.drift_limit is not None
        assert (job.drift_limit.max_drift, job.drift_limit.out.name[2:]) == (1e-3, "-eager-float32")


@pytest.mark.slow
def test_eager(tmp_path: Path) -> None:
    """Where eager is asked for, no other form is tried: the dtypes are judged, and the faster one is used."""
    found = optimize(saved("vit", tmp_path), out=tmp_path / "out", form="eager", seconds=SECONDS)
    assert found.status is Status.REACHED
    assert {one.form for one in found.attempts} == {"eager"}
    assert len(found.dtypes) == 3
    agrees(tmp_path / "out", found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dbrx", "longformer", "switch"])
def test_falls_back(name: str, tmp_path: Path) -> None:
    """What does not capture falls back to a verified form, and says so, with the line to blame."""
    out = tmp_path / "out"
    found = optimize(saved(name, tmp_path), out=out, form="export", dtype="float32", seconds=SECONDS)
    assert found.status is Status.FELL_BACK
    assert found.winner.outcome is Outcome.VERIFIED
    assert found.winner.form in ("regional", "partial", "eager")
    assert found.why.startswith(f"fell back to {found.winner.form} in float32")
    assert found.graphs["sites"][0]["file"].startswith("transformers/models/")
    agrees(out, found)


@pytest.mark.slow
def test_branch(tmp_path: Path) -> None:
    """A trace that took one branch is found out on inputs that take the other one, and never offered."""
    out = tmp_path / "out"
    found = optimize(
        ZOO["branch"].model(), ZOO["branch"].inputs(), out=out, form="torchscript", dtype="float32", seconds=SECONDS
    )
    (trace,) = (one for one in found.attempts if one.form == "torchscript" and one.dtype == FLOAT32)
    assert trace.outcome is Outcome.WRONG
    assert trace.reason.startswith("held out: ")
    assert found.status is Status.FELL_BACK
    agrees(out, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "why"), [("lightglue", "zero but for rounding"), ("vilt", "two runs on the same inputs differ")]
)
def test_no_reference(name: str, why: str, tmp_path: Path) -> None:
    """A model whose own answer says nothing, or is another one each time, is no reference: nothing is offered."""
    folder, out = saved(name, tmp_path), tmp_path / "out"
    before = hashes(folder)
    found = optimize(folder, ZOO[name].inputs(), out=out, seconds=SECONDS)
    assert (found.status, found.winner) == (Status.NO_DTYPE, None)
    assert why in found.why
    assert hashes(folder) == before


@pytest.mark.slow
def test_float16_overflows(tmp_path: Path) -> None:
    """A dtype in which eager itself is wrong gets no form; float32 is what one falls back to."""
    model = ZOO["vit"].model()
    with torch.no_grad():
        model.vit.layers[0].mlp.fc1.weight.mul_(3e5)
    out = tmp_path / "out"
    found = optimize(model, out=out, form="export", dtype="float16", seconds=SECONDS)
    assert found.status is Status.FELL_BACK
    assert found.winner.dtype == FLOAT32
    assert next(one for one in found.dtypes if one.dtype == FLOAT16).problem
    agrees(out, found)


@pytest.mark.slow
@pytest.mark.needs("amx")
def test_wrong_convolution(tmp_path: Path) -> None:
    """The convolution that AMX computes wrongly in bfloat16 is caught, blamed on oneDNN, and ends in float32."""
    found = optimize(
        ZOO["patches"].model(), ZOO["patches"].inputs(), out=tmp_path / "out", form="export", dtype="bfloat16"
    )
    assert found.status is Status.FELL_BACK
    assert found.winner.dtype == FLOAT32
    assert "ONEDNN_MAX_CPU_ISA" in next(one for one in found.dtypes if one.dtype == BFLOAT16).problem
