"""A Hub with one small checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from publishing.client import connect
from publishing.loopback import LoopbackHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Callable[..., Path]) -> Iterator[LoopbackHub]:
    """A Hub that has a small checkpoint as org/model."""
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "home")
        hub.push("org/model", {one.name: one.read_bytes() for one in saved().iterdir()})
        yield hub
