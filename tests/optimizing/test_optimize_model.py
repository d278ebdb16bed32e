"""Real models, tiny and random: each ends with a verified form that loads, or with a status that says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
from optimizing.made import agrees, zoo_folder
from optimizing.zoo import ZOO

from safe_dtype.errors import BackupError, CheckpointError, EnvironmentNotFitError, NotOptimizableError
from safe_dtype.facts import FLOAT32
from safe_dtype.optimizing import Dynamic, Status, optimize, read_record
from safe_dtype.optimizing.environment import hashes

pytestmark = pytest.mark.usefixtures("forked_children")
SECONDS = 240.0


@pytest.mark.needs("torch>=2.13")
def test_exported(tmp_path: Path) -> None:
    """A model on the disk becomes a program that loads here; its own files stay as they are, and a copy is kept."""
    folder, out = zoo_folder("vit", tmp_path), tmp_path / "out"
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
    with pytest.raises(BackupError, match="has inputs, which no optimization wrote"):
        optimize(zoo_folder("vit", tmp_path), out=tmp_path / "out")
    assert (tmp_path / "out" / "inputs" / "mine").read_text() == "precious"


def test_unknown_inputs(tmp_path: Path) -> None:
    """A module whose inputs nobody knows needs some; no folder is left."""
    with pytest.raises(NotOptimizableError, match="pass inputs="):
        optimize(ZOO["branch"].model(), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_such_model(tmp_path: Path) -> None:
    """Where nothing was tried, nothing is left of it: what is the user's own stays."""
    for out in (tmp_path / "new", tmp_path / "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match="no such file or folder"):
            optimize(tmp_path / "nothing", out=out)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    (tmp_path / "there" / "mine").write_text("precious")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        optimize(tmp_path / "nothing", out=tmp_path / "there")
    assert (tmp_path / "there" / "mine").read_text() == "precious"


def test_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that was asked for and cannot be made here is told before anything is done."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EnvironmentNotFitError, match="C\\+\\+ compiler"):
        optimize(zoo_folder("vit", tmp_path), out=tmp_path / "out", form="aoti")
    assert not (tmp_path / "out").exists()
