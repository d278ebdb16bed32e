"""What was measured of a repository holds for its commit: where main moves, and nobody named a revision, it is measured anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engineered import saved
from publishing.client import connect
from publishing.loopback import LoopbackHub

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


@pytest.mark.slow
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
