"""Going back is a new commit with the files of an old one."""

from __future__ import annotations

from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, call, lose_response, status
from publishing.stages import REPO, hurried, sharded, whole, written

from safe_dtype.errors import PublishError
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.pushing.rollback import rollback
from safe_dtype.publishing.release import State, Target

TARGET = Target(REPO, public=True)
FOR_EVER = 10**9


@pytest.fixture
def before(hub: LoopbackHub, tmp_path: Path) -> str:
    """A commit with other weights, a variant having been published on top of it."""
    oid = hub.push(REPO, whole())
    push(written(tmp_path / "stage", sharded()), TARGET, api=hurried(hub))
    return oid


def is_back(hub: LoopbackHub, before: str) -> bool:
    """Whether main holds what it held, by one more commit."""
    titles = [title for _, title in hub.commits(REPO)]
    return (
        hub.files(REPO) == hub.files(REPO, before)
        and titles[0].startswith("safe-dtype: roll back")
        and len(titles) == 4
    )


def test_back(hub: LoopbackHub, before: str) -> None:
    """The old files are all back and the new ones gone, no bytes are sent, and the history has grown."""
    sent = len(hub.requests)
    receipt = rollback(TARGET, before, api=hurried(hub))
    assert (receipt.state, receipt.oid) == (State.PUBLISHED, hub.branches(REPO)["main"])
    assert is_back(hub, before)
    assert not [path for _, path in hub.requests[sent:] if "lfs" in path]


def test_by_the_beginning_of_its_name(hub: LoopbackHub, before: str) -> None:
    """A commit may be named as people do."""
    rollback(TARGET, before[:10], api=hurried(hub))
    assert is_back(hub, before)


def test_there_already(hub: LoopbackHub, before: str) -> None:
    """Twice is once."""
    rollback(TARGET, before, api=hurried(hub))
    rollback(TARGET, before, api=hurried(hub))
    assert is_back(hub, before)


@pytest.mark.parametrize("code", [400, 422, 501])
def test_a_server_that_copies_nothing(hub: LoopbackHub, before: str, code: int) -> None:
    """Where the server takes no copies, the files are downloaded and sent."""
    hub.fault("POST", "/commit/", status(code), times=3 if code == 501 else 1)
    rollback(TARGET, before, api=hurried(hub))
    assert is_back(hub, before)


def test_a_lost_response(hub: LoopbackHub, before: str) -> None:
    """A commit that landed and was not answered counts."""
    hub.fault("POST", "/commit/", lose_response, times=FOR_EVER)
    rollback(TARGET, before, api=hurried(hub))
    assert is_back(hub, before)


def test_somebody_else_comes_first(hub: LoopbackHub, before: str) -> None:
    """A commit in between is not undone unseen."""
    hub.fault("POST", "/commit/", call(lambda hub: hub.push(REPO, {"notes.txt": b"theirs"})))
    with pytest.raises(PublishError) as error:
        rollback(TARGET, before, api=hurried(hub))
    assert error.value.state == "conflict"
    assert hub.files(REPO)["notes.txt"] == b"theirs"


@pytest.mark.parametrize(
    ("to", "path", "code", "state"),
    [
        ("0" * 40, "nothing", 500, "not-started"),
        (None, "/commit/", 403, "not-published"),
        (None, "/paths-info/", 500, "not-published"),
    ],
    ids=["no-such-commit", "not-allowed", "not-read"],
)
def test_it_fails(hub: LoopbackHub, before: str, to: str | None, path: str, code: int, state: str) -> None:
    """Nothing has changed then."""
    hub.fault("*", path, status(code), times=FOR_EVER)
    was = hub.branches(REPO)
    with pytest.raises(PublishError) as error:
        rollback(TARGET, to or before, api=hurried(hub))
    assert error.value.state == state
    assert hub.branches(REPO) == was
