"""The search over the forms of real models, tiny and random: a verified form, or a status that says why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizing.form_models import Mlp
from optimizing.made import agrees, zoo_folder
from optimizing.zoo import ZOO

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.optimizing import Status, optimize
from safe_dtype.optimizing.environment import hashes
from safe_dtype.optimizing.nouns.job import Job
from safe_dtype.optimizing.nouns.record import Outcome

pytestmark = pytest.mark.usefixtures("forked_children")

SECONDS = 240.0


WHOLE = (
    "sapiens2", "sapiens2_pose", "sapiens2_normal", "sapiens2_pointmap", "sapiens2_matting", "segformer", "upernet",
    "mask2former", "vit", "qwen3", "whisper", "jetmoe",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole(name: str, tmp_path: Path) -> None:
    """What captures as one graph is exported in bfloat16, also where a count says otherwise, as of JetMoe."""
    out = tmp_path / "out"
    found = optimize(zoo_folder(name, tmp_path), out=out, form="export", dtype="bfloat16", seconds=SECONDS)
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
    found = optimize(zoo_folder("vit", tmp_path), out=tmp_path / "out", form="eager", seconds=SECONDS)
    assert found.status is Status.REACHED
    assert {one.form for one in found.attempts} == {"eager"}
    assert len(found.dtypes) == 3
    agrees(tmp_path / "out", found)


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
    folder, out = zoo_folder(name, tmp_path), tmp_path / "out"
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
