"""A loopback Hub for every test that asks for one, and the client of this process pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from publishing.client import connect
from publishing.loopback import LoopbackHub


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the client send bytes in a way that its own HTTP library is about to drop."""
    if "hub" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub that takes large files the way of LFS."""
    with LoopbackHub() as hub:
        connect(monkeypatch, hub, tmp_path / "client")
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    """The real client, logged in."""
    return HfApi(endpoint=hub.url, token=hub.token)
