"""What the child of a diagnosis finds out, run in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from optimizing.form_models import Branch, Mlp
from optimizing.jobs import job_of
from safetensors.torch import save_file

from safe_dtype.optimizing.attempts.diagnosis import Diagnosis
from safe_dtype.optimizing.attempts.diagnosis_child import main
from safe_dtype.optimizing.nouns.job import Job


class Dropout(torch.nn.Module):
    """Gives other outputs at each call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return half of `x`."""
        return torch.nn.functional.dropout(x, training=True)


def diagnosed(job: Job) -> Diagnosis:
    """Do the job, and return what it wrote."""
    job.out.mkdir()
    job.write(job.out / "job.json")
    main(job.out / "job.json")
    diagnosis = Diagnosis.read(job.out / "diagnosis.json")
    assert diagnosis is not None
    return diagnosis


def test_whole(tmp_path: Path) -> None:
    """A model that captures whole has one graph in either mode; a batch that it cannot take is left out."""
    save_file({"x": torch.ones(2, 17)}, tmp_path / "wide.safetensors")
    diagnosis = diagnosed(replace(job_of(Mlp(), tmp_path), held_out=(tmp_path / "wide.safetensors",)))
    assert (diagnosis.at, diagnosis.whole, diagnosis.captures, diagnosis.problem) == ("done", True, True, "")
    assert [count["graphs"] for count in diagnosis.counts] == [1, 1]
    assert list(diagnosis.unusable) == ["wide.safetensors"]
    assert "mat1 and mat2" in diagnosis.unusable["wide.safetensors"]


def test_branch(tmp_path: Path) -> None:
    """A model that does not capture whole has the line to blame."""
    diagnosis = diagnosed(job_of(Branch(), tmp_path))
    assert (diagnosis.at, diagnosis.whole, diagnosis.captures) == ("done", False, False)
    assert (diagnosis.kind, diagnosis.sites[0].code) == ("data_dependent", "return y.relu() if x.sum() > 0 else y - 1")
    assert (diagnosis.regions, diagnosis.coverage) == ((), 0.0)


def test_no_reference(tmp_path: Path) -> None:
    """A model whose outputs change from call to call is no reference, and no more is tried."""
    diagnosis = diagnosed(job_of(Dropout(), tmp_path))
    assert (diagnosis.at, diagnosis.whole) == ("done", None)
    assert diagnosis.reference["problems"][0].startswith("two runs on the same inputs differ by up to")


def test_failure(tmp_path: Path) -> None:
    """What the model raises is the problem, with what was being done."""
    job = job_of(Mlp(), tmp_path)
    save_file({"x": torch.ones(2, 17)}, job.inputs)
    diagnosis = diagnosed(job)
    assert diagnosis.at == "running it twice"
    assert "mat1 and mat2 shapes" in diagnosis.problem
