"""A diagnosis travels as JSON, and what its child does is never raised."""

from __future__ import annotations

from pathlib import Path

import pytest
from optimizing.form_models import Exits
from optimizing.jobs import job_of

from safe_dtype.optimizing.attempts.diagnosis import Diagnosis, diagnose
from safe_dtype.optimizing.nouns.record import BreakSite


def test_json(tmp_path: Path) -> None:
    """A diagnosis is read as it was written; None where none was."""
    site = BreakSite("a.py", 3, "if x:", "Data-dependent branching", "data_dependent")
    diagnosis = Diagnosis(
        "done", {"problems": []}, {"b": "why"}, whole=False, kind="data_dependent", reason="no", sites=(site,),
        remedies=("a=b",), tried={"a=c": "why"}, regions=("x",), varying=("y",), coverage=0.5, coverage_varying=0.75,
        counts=({"graphs": 2},), problem="",
    )  # fmt: skip
    assert Diagnosis.read(tmp_path / "diagnosis.json") is None
    diagnosis.write(tmp_path / "diagnosis.json")
    assert Diagnosis.read(tmp_path / "diagnosis.json") == diagnosis


@pytest.mark.parametrize(
    ("diagnosis", "captures"),
    [
        (Diagnosis("done", whole=True), True),
        (Diagnosis("done", whole=False, remedies=("a=b",)), True),
        (Diagnosis("done", whole=False), False),
        (Diagnosis("done"), False),
    ],
)
def test_captures(diagnosis: Diagnosis, captures: bool) -> None:
    """A model captures by itself, or with a remedy."""
    assert diagnosis.captures is captures


@pytest.mark.usefixtures("forked_children")
def test_dead_child(tmp_path: Path) -> None:
    """A child that ends in the middle leaves what it knew, how it ended, and its last words."""
    diagnosis = diagnose(job_of(Exits(), tmp_path), seconds=60)
    assert (diagnosis.at, diagnosis.whole) == ("running it twice", None)
    assert diagnosis.problem.endswith("while running it twice: nothing more to say")
    assert "status 7" in diagnosis.problem
