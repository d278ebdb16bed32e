"""An attempt runs in a process of its own: what happens there is told, and happens to nobody else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from optimizing.form_models import Aborts, Exits, Hangs, Mlp
from optimizing.jobs import job_of
from processes.running import ends
from safetensors.torch import save_file

from safe_dtype.optimizing.attempts.runner import run_attempt
from safe_dtype.optimizing.nouns.job import AttemptResult, Job
from safe_dtype.optimizing.nouns.record import Outcome


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_crash(tmp_path: Path) -> None:
    """A process that aborts is a crash with the signal's name and with what it was doing."""
    found = run_attempt(job_of(Aborts(), tmp_path), root=tmp_path, seconds=60)
    assert found.outcome is Outcome.CRASHED
    assert found.reason == "ended by SIGABRT, while running eager"


def test_silent_exit(tmp_path: Path) -> None:
    """A process that just leaves is a crash with its status and its last words."""
    found = run_attempt(job_of(Exits(), tmp_path), root=tmp_path, seconds=60)
    assert found.outcome is Outcome.CRASHED
    assert found.reason.startswith("ended with status 7, while running eager: ")
    assert "nothing more to say" in found.reason


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="starts `sleep`")
def test_hang(tmp_path: Path) -> None:
    """A process that hangs is stopped in time, together with what it started; its log stays."""
    found = run_attempt(job_of(Hangs(), tmp_path), root=tmp_path, seconds=12)
    assert found.outcome is Outcome.TIMED_OUT
    assert found.reason == "stopped after 12 s, while running eager"
    log = (tmp_path / found.log).read_text()
    child = int(log.partition("started ")[2].split()[0])
    assert ends(child)


@pytest.mark.usefixtures("forked_children")
def test_python_error(tmp_path: Path) -> None:
    """What Python raises is a failure with its text; the traceback is in the log."""
    job = job_of(Mlp(), tmp_path)
    save_file({"x": torch.ones(2, 17)}, job.inputs)
    found = run_attempt(job, root=tmp_path, seconds=60)
    assert found.outcome is Outcome.FAILED
    assert found.reason.startswith("while running eager: RuntimeError: ")
    assert "mat1 and mat2 shapes" in found.reason
    assert found.log == "attempt/attempt.log"
    assert "Traceback" in (tmp_path / found.log).read_text()


@pytest.mark.usefixtures("forked_children")
def test_broken_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process cannot load is no success, though the process that wrote it could run it."""
    from safe_dtype.optimizing.attempts import runner

    in_a_child = runner.run_in_child

    def breaks_it_first(job: Job, *rest: object) -> AttemptResult:
        if "reloaded" in job.stages:
            (job.artifact_folder / "model.ts").write_bytes(b"not a model")
        return in_a_child(job, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run_in_child", breaks_it_first)
    found = run_attempt(job_of(Mlp(), tmp_path, "torchscript"), root=tmp_path, seconds=60)
    assert found.outcome is Outcome.FAILED
    assert found.reason.startswith("in a fresh process: while loading the artifact: ")
    assert [stage.name for stage in found.stages] == ["traced"]
