"""What the receipt says is compared with the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, drop, status
from publishing.stages import REPO, hurried, sharded, written

from safe_dtype.errors import PublishError
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.pushing.status import status as standing
from safe_dtype.publishing.release import State, Target

TARGET = Target(REPO, public=True)
FOR_EVER = 10**9


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder."""
    return written(tmp_path / "stage", sharded())


def test_never_pushed(hub: LoopbackHub, stage: Path) -> None:
    """A folder without a receipt was never pushed, and the Hub is not asked."""
    assert standing(stage, hurried(hub)).state is State.NOT_STARTED
    assert hub.requests == []


def test_published(hub: LoopbackHub, stage: Path) -> None:
    """All is as it was left."""
    oid = push(stage, TARGET, api=hurried(hub)).oid
    found = standing(stage, hurried(hub))
    assert (found.state, found.head, found.private, found.changed_since) == (State.PUBLISHED, oid, False, False)


def test_moved_on(hub: LoopbackHub, stage: Path) -> None:
    """Somebody else changed one of the files since."""
    push(stage, TARGET, api=hurried(hub))
    hub.push(REPO, {"config.json": b"{}"})
    found = standing(stage, hurried(hub))
    assert found.state is State.CONFLICT
    assert "config.json" in found.reason


def test_changed_since(hub: LoopbackHub, stage: Path) -> None:
    """The folder is not what was published."""
    push(stage, TARGET, api=hurried(hub))
    (stage / "config.json").write_bytes(b"{}")
    assert standing(stage, hurried(hub)).changed_since


def test_landed_and_never_read_back(hub: LoopbackHub, stage: Path) -> None:
    """A run that ended after its commit is found on the Hub."""
    hub.fault("GET", "/resolve/", status(403), times=FOR_EVER)
    with pytest.raises(PublishError):
        push(stage, TARGET, api=hurried(hub))
    assert standing(stage, hurried(hub)).state is State.UNVERIFIED


def test_still_private(hub: LoopbackHub, stage: Path) -> None:
    """One that could not be made public says so."""
    hub.fault("PUT", "/settings", status(403), times=FOR_EVER)
    with pytest.raises(PublishError):
        push(stage, TARGET, api=hurried(hub))
    assert standing(stage, hurried(hub)).state is State.PRIVATE


def test_gone(hub: LoopbackHub, stage: Path) -> None:
    """A repository that was deleted holds nothing."""
    push(stage, TARGET, api=hurried(hub))
    del hub.repositories[REPO]
    assert standing(stage, hurried(hub)).state is State.NOT_PUBLISHED


def test_unreachable(hub: LoopbackHub, stage: Path) -> None:
    """Where the Hub does not answer, nothing is said but what the receipt says."""
    push(stage, TARGET, api=hurried(hub))
    hub.fault("GET", "", drop, times=FOR_EVER)
    with pytest.raises(PublishError, match="connection"):
        standing(stage, hurried(hub))
