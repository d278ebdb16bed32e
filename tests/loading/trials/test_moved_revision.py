"""What was measured of a repository holds for its commit: where main moves, and nobody named a revision, it is measured anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engineered import saved
from huggingface_hub import constants
from publishing.client import connect
from publishing.loopback import LoopbackHub, status

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.checkpoints.fingerprint import fingerprint
from safe_dtype.checkpoints.model_files import files_of
from safe_dtype.facts import Where
from safe_dtype.loading import Request, plan_request

REPO = "org/llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama saved in bfloat16 that leaves float16's range."""
    return saved("llama", tmp_path_factory.mktemp("moved"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> Iterator[LoopbackHub]:
    """A Hub that has it."""
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        hub.push(REPO, {one.name: one.read_bytes() for one in folder.iterdir()})
        yield hub


def key_of(**where: str) -> str:
    """Return the digest under which results of the repository are remembered."""
    place = Where(REPO, **where)
    return fingerprint(read_checkpoint(place), place)


def test_measured_anew(hub: LoopbackHub, caplog: pytest.LogCaptureFixture) -> None:
    """A result of the commit before is not taken for one of this, and the other way round."""

    def measured() -> bool:
        caplog.clear()
        plan_request(Request(REPO, {"dtype": "float16"}), drifts="measured")
        return "measuring whether float16 holds" in caplog.text

    assert measured()
    assert not measured()
    hub.push(REPO, {"README.md": b"# Words\n"})
    assert measured()
    assert not measured()


def test_key(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is the same whatever the commit was called; offline it is that of the commit in the cache."""
    (first, _), *_ = hub.commits(REPO)
    before = key_of()
    assert key_of(revision="main") == key_of(revision=first) == before
    second = hub.push(REPO, {"README.md": b"# Words\n"})
    assert key_of() == key_of(revision=second) != before
    hub.push(REPO, {"README.md": b"# Other words\n"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert commit_read() == second


def commit_read() -> str | None:
    """Return the commit that is read where nobody names one."""
    return files_of(Where(REPO)).commit


def test_a_hub_that_does_not_answer(hub: LoopbackHub) -> None:
    """Where the Hub fails, and the cache knows the revision, that of the cache is read, as transformers does."""
    (first, _), *_ = hub.commits(REPO)
    key_of()
    hub.push(REPO, {"README.md": b"# Words\n"})
    hub.fault("*", REPO, status(503), times=float("inf"))
    assert commit_read() == first
