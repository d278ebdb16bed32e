"""Which process of a job is a rank, and which was started by one: told by the environment alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from safe_dtype.processes.rank_process import MARK, is_started_by_rank, mark_rank

RANK = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ASKS = "import safe_dtype.processes.rank_process as one; print(one.is_started_by_rank())"
STARTS = (
    f"import safe_dtype, subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {ASKS!r}], text=True))"
)


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of a launcher, in this process."""
    monkeypatch.setenv(MARK, "")
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def said_by(code: str, **settings: str) -> str:
    """Return what a Python prints."""
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, text=True, env={**os.environ, **settings}).strip()


@pytest.mark.usefixtures("rank")
def test_what_imports_safe_dtype_first_is_the_rank() -> None:
    """A process that it starts is none; one that the launcher starts is."""
    assert said_by(ASKS) == "False"
    assert said_by(STARTS) == "True"


@pytest.mark.usefixtures("rank")
def test_a_rank_stays_one() -> None:
    """It may look as often as it likes, and its children only find out."""
    mark_rank()
    mark_rank()
    assert not is_started_by_rank()
    assert said_by(ASKS) == "True"


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize(
    "settings",
    [{"RANK": "0"}, {"MASTER_PORT": "29501"}, {"TORCHELASTIC_RUN_ID": "none"}, {"TORCHELASTIC_RESTART_COUNT": "1"}],
    ids=lambda settings: " ".join(settings),
)
def test_a_launch_of_its_own(settings: dict[str, str]) -> None:
    """What a rank, or a launcher that a cluster takes for one, starts with other variables is a rank of another launch."""
    mark_rank()
    assert said_by(ASKS, **settings) == "False"


def test_a_job_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher nothing is put into the environment."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv(MARK, raising=False)
    mark_rank()
    assert MARK not in os.environ
    assert not is_started_by_rank()
