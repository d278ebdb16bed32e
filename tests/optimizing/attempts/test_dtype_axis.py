"""Every dtype in eager form against float32, each really run: by the user's limit, or by what rounding explains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optimizing.form_models import OneLargeValue
from safetensors.torch import load_file, save_file

from safe_dtype import Dtype, exceeds, measure_drift
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.optimizing.attempts.dtype_axis import judge_dtypes
from safe_dtype.optimizing.attempts.load_model import save_module
from safe_dtype.optimizing.attempts.runner import run_attempt
from safe_dtype.optimizing.nouns.goal import Goal
from safe_dtype.optimizing.nouns.job import DriftLimit, Job
from safe_dtype.optimizing.nouns.record import Outcome

pytestmark = pytest.mark.usefixtures("forked_children")


def job_in(dtype: Dtype, folder: Path) -> Job:
    """Return the untimed job of eager in `dtype`, with one batch to trace and one that is held out."""
    save_module(OneLargeValue(), folder / "model.pt")
    for number, name in enumerate(("traced", "held-out")):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(number))
        save_file({"x": x}, folder / f"{name}.safetensors")
    return Job(
        folder / "model.pt", "", dtype, "eager", folder / f"eager-{dtype}", folder / "traced.safetensors",
        (folder / "held-out.safetensors",), time=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("max_drift", "reason"),
    [
        pytest.param(0.15, "by more than max_drift allows", id="beyond"),  # 0.06 of the largest output, 0.2 of its RMS
        pytest.param(0.5, "", id="within"),
        pytest.param(None, "by more than rounding", id="no-limit"),
    ],
)
def test_max_drift(max_drift: float | None, reason: str, tmp_path: Path) -> None:
    """A dtype is refused at the same limit, with the same figure, as by `verify` on the same batch."""
    goal = Goal(max_drift=max_drift, seconds=120)
    answers = judge_dtypes((FLOAT32, BFLOAT16), lambda dtype: job_in(dtype, tmp_path), root=tmp_path, goal=goal)
    (_, in_float32), (attempt, in_bfloat16) = answers
    assert in_float32.problem == ""
    assert reason in in_bfloat16.problem
    assert bool(in_bfloat16.problem) is bool(reason)
    assert attempt.outcome is (Outcome.WRONG if reason else Outcome.VERIFIED)
    if max_drift is not None:
        model = OneLargeValue()
        drift = measure_drift(lambda x: model(x.bfloat16()), model, [load_file(tmp_path / "traced.safetensors")])
        assert f"last_hidden_state: {exceeds(drift, max_drift)};" in in_bfloat16.problem or not reason


@pytest.mark.parametrize("form", ["eager", "export"])
@pytest.mark.parametrize(("max_drift", "outcome"), [(0.15, Outcome.WRONG), (0.5, Outcome.VERIFIED)])
def test_form_against_float32(form: str, max_drift: float, outcome: Outcome, tmp_path: Path) -> None:
    """A form that is exactly eager in its own dtype is refused where it drifts from float32 by more than allowed."""
    in_float32 = job_in(FLOAT32, tmp_path)
    run_attempt(in_float32, root=tmp_path, seconds=60)
    job = job_in(BFLOAT16, tmp_path)
    limited = Job(
        job.model, "", BFLOAT16, form, tmp_path / "form", job.inputs, job.held_out, time=False,
        drift_limit=DriftLimit(max_drift, in_float32.out),
    )  # fmt: skip
    attempt = run_attempt(limited, root=tmp_path, seconds=120)
    assert attempt.outcome is outcome, attempt.reason
    assert all(stage.distance.max_abs == 0.0 for stage in attempt.stages)
    stages = ["traced", "held out"] + ["reloaded"] * (form == "export" and outcome is Outcome.VERIFIED)
    assert [stage.name for stage in attempt.stages] == stages
    if outcome is Outcome.WRONG:
        for stage in attempt.stages:
            assert f"{stage.name}: it drifts from float32 by more than max_drift allows: last_hid" in attempt.reason
