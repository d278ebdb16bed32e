"""What the child of an attempt does with its job, run in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optimizing.form_models import Branch, Mlp
from optimizing.jobs import job_of
from safetensors.torch import load_file, save_file

from safe_dtype.optimizing.attempts.attempt_child import main
from safe_dtype.optimizing.nouns.job import AttemptResult, Job
from safe_dtype.optimizing.nouns.record import Outcome


@pytest.fixture(autouse=True)
def level_of_the_log() -> Iterator[None]:
    """Leave the library's log as it was: a child shows more of it."""
    ours = logging.getLogger("safe_dtype")
    level = ours.level
    yield
    ours.setLevel(level)


def done(job: Job) -> AttemptResult:
    """Do the job, and return what it wrote."""
    job.out.mkdir(exist_ok=True)
    job.write(job.out / "job.json")
    main(job.out / "job.json")
    result = AttemptResult.read(job.result)
    assert result is not None
    return result


def test_eager(tmp_path: Path) -> None:
    """Eager is verified against itself on every batch, and its outputs are left for other processes."""
    save_file({"x": -torch.ones(3, 16)}, tmp_path / "other.safetensors")
    job = replace(job_of(Mlp(), tmp_path), held_out=(tmp_path / "other.safetensors",))
    result = done(job)
    assert (result.outcome, result.at, result.bytes) == (Outcome.VERIFIED, "leaving", 0)
    assert [stage.name for stage in result.stages] == ["traced", "held out"]
    assert {name: tuple(tensor.shape) for name, tensor in load_file(job.reference(1)).items()} == {
        "logits": (3, 8), "hidden": (3, 32),
    }  # fmt: skip
    assert result.seconds.run is None, "the job takes no time"


def test_failure(tmp_path: Path) -> None:
    """What Python raises is a failure with what was being done."""
    job = job_of(Mlp(), tmp_path)
    save_file({"x": torch.ones(2, 17)}, job.inputs)
    result = done(job)
    assert result.outcome is Outcome.FAILED
    assert result.reason.startswith("while running eager: RuntimeError: ")
    assert "mat1 and mat2 shapes" in result.reason
    assert result.sites == ()


def test_blamed_line(tmp_path: Path) -> None:
    """A form that cannot be built names the line of the model."""
    result = done(job_of(Branch(), tmp_path, "export"))
    assert result.outcome is Outcome.FAILED
    assert result.reason.startswith("while building: ")
    assert [site.code for site in result.sites] == ["return y.relu() if x.sum() > 0 else y - 1"]


def test_reloaded(tmp_path: Path) -> None:
    """An artifact is loaded again and compared with the outputs that eager left; other outputs are wrong."""
    job = job_of(Mlp(), tmp_path, "export")
    made = done(job)
    assert made.outcome is Outcome.VERIFIED
    assert made.bytes > 0
    again = done(job.reload())
    assert (again.outcome, [stage.name for stage in again.stages]) == (Outcome.VERIFIED, ["reloaded"])
    save_file({name: tensor + 1 for name, tensor in load_file(job.reference(0)).items()}, job.reference(0))
    wrong = done(job.reload())
    assert wrong.outcome is Outcome.WRONG
    assert wrong.reason.startswith("reloaded: it differs from eager by more than rounding")


def test_nothing_to_load(tmp_path: Path) -> None:
    """A form without a file cannot be loaded again."""
    result = done(job_of(Mlp(), tmp_path).reload())
    assert result.outcome is Outcome.FAILED
    assert "eager leaves no file" in result.reason
