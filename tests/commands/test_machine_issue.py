"""`safe-dtype report`, run as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_run import Run

from safe_dtype.commands.machine_issue import machine_issue
from safe_dtype.devices import facts_of
from safe_dtype.facts import LearnedFailure


def test_report(run: Run, tiny_qwen3: Path) -> None:
    """Versions, the device and the plan of the model are in it, and nothing goes wrong."""
    done = run("report", tiny_qwen3, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for seen in ("### What happened", "- torch ", "- safe_dtype ", "- cpu: ", "matmul", "### Plan of ", "chosen"):
        assert seen in done.stdout


def test_one_screen() -> None:
    """What is not folded away fits on one screen: what was measured of a device is."""
    text = machine_issue({facts_of("cpu"): ()}, model="model", plan="float32\nbecause: it is the fastest")
    shown, folded = text.split("<details><summary>What was measured of cpu, ")
    assert len(shown.splitlines()) < 25
    assert "matmul" in folded
    assert folded.endswith("\n</details>")


def test_error_in_place_of_a_plan(run: Run, tmp_path: Path) -> None:
    """A model that cannot be planned is what a report may be about: its error stands there, and the status is 0."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    done = run("report", tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "CorruptCheckpointError: " in done.stdout


def test_no_such_model(run: Run) -> None:
    """A model that is not found, mistyped perhaps, is said on stderr with status 1 beside the whole report."""
    done = run("report", "no-such-model", "--device", "cpu")
    assert done.returncode == 1
    assert "CheckpointNotFoundError: no-such-model: " in done.stdout
    assert "What was measured of cpu" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("safe-dtype: no-such-model: ")
    assert "Next: " in done.stderr


def test_no_personal_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The home folder is shortened wherever it stands, and what was learned comes with its text and its trials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    failure = LearnedFailure(
        "qwen3", "Linear.forward", "bfloat16", "cpu", "head", "RuntimeError", f"{tmp_path}/x.cpp: no opcode",
        works_in=("float32",), trials=("head in float32: passes",),
    )  # fmt: skip
    text = machine_issue({facts_of("cpu"): (failure,)}, model=f"{tmp_path}/model", plan="CorruptCheckpointError")
    assert str(tmp_path) not in text
    assert "### Plan of ~/model" in text
    assert "~/x.cpp: no opcode" in text
    assert "- head in float32: passes" in text
    assert "- works in: float32" in text
