"""What `optimize` verified goes into the card, and the ONNX file that it chose into the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.optimizing.nouns.record import Distance, FormAttempt, Optimization, Outcome, Seconds, Stage
from safe_dtype.publishing.staging.evidence import TriedForm
from safe_dtype.publishing.staging.forms import copy_onnx, forms_of


def stage(relative: float) -> Stage:
    """Return a stage with this error."""
    return Stage("traced", Distance(relative, relative, 1.0))


def attempt(form: str, outcome: Outcome = Outcome.VERIFIED, **changes: Any) -> FormAttempt:
    """Return an attempt, twice as fast as eager."""
    return FormAttempt(form, BFLOAT16, outcome, seconds=Seconds(run=0.5, eager=1.0), **changes)


def record(*attempts: FormAttempt, chosen: int | None = None, **changes: Any) -> Optimization:
    """Return the record of an optimization."""
    return Optimization(
        "tiny", "Qwen3ForCausalLM", "cpu", "auto", "auto", FLOAT32.name, attempts=attempts, chosen=chosen, **changes
    )


def test_verified_forms() -> None:
    """Each verified form has the error of its worst stage and its speed; the others are counted."""
    forms = forms_of(
        record(
            attempt("aoti", Outcome.FAILED),
            attempt("export", stages=(stage(1e-3), stage(2e-3))),
            attempt("onnx", Outcome.WRONG, stages=(stage(0.5),)),
            chosen=1,
        )
    )
    assert forms.verified == (TriedForm("export", "bfloat16", 2e-3, 2.0, chosen=True),)
    assert forms.others == 2


@pytest.mark.parametrize(
    ("environment", "device"), [({}, "cpu"), ({"cpu": {"name": "A processor"}}, "A processor"), ({"cpu": None}, "cpu")]
)
def test_the_device(environment: dict[str, object], device: str) -> None:
    """A processor is named by its product, where the record knows it."""
    assert forms_of(record(environment=environment)).device == device


@pytest.mark.parametrize(
    ("form", "names"),
    [("onnx", {"model.onnx", "model.onnx.data"}), ("aoti", set())],
)
def test_the_onnx_file(tmp_path: Path, form: str, names: set[str]) -> None:
    """Of the chosen form the files go along where it is ONNX, which holds no code."""
    files = {"model.onnx": "0", "model.onnx.data": "1"}
    for name in files:
        path = tmp_path / "made" / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "staged").mkdir()
    winner = attempt(form, artifact="artifacts", artifact_files=files)
    copy_onnx(tmp_path / "made", record(winner, chosen=0), tmp_path / "staged")
    assert {path.name for path in (tmp_path / "staged").rglob("*") if path.is_file()} == names
    assert all((tmp_path / "staged" / "onnx" / name).read_bytes() == name.encode() for name in names)


def test_nothing_chosen(tmp_path: Path) -> None:
    """Where no form was chosen there is nothing to copy."""
    copy_onnx(tmp_path, record(attempt("onnx")), tmp_path)
    assert list(tmp_path.iterdir()) == []
