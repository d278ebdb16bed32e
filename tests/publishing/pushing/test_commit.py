"""One commit, and whether it landed: found out where an error leaves it open, and never made twice."""

from __future__ import annotations

import pytest
from publishing.faults import Action
from publishing.loopback import LoopbackHub, call, drop, lose_response, status
from publishing.stages import REPO, hurried, whole

from safe_dtype.hub.client import Commit
from safe_dtype.publishing.pushing.commit import Landed, Stranded, land
from safe_dtype.publishing.release import State

FOR_EVER = 10**9


@pytest.fixture
def commit(hub: LoopbackHub) -> Commit:
    """A commit that deletes one file of a repository."""
    return Commit(REPO, "main", "ours", hub.push(REPO, whole()), delete=("LICENSE",))


def landed(hub: LoopbackHub, commit: Commit) -> Landed | Stranded:
    """Return what comes of it."""
    return land(hurried(hub), commit, holds=lambda tree: "LICENSE" not in tree)


def commits_of_ours(hub: LoopbackHub) -> int:
    """Return how many commits have our title."""
    return [title for _, title in hub.commits(REPO)].count("ours")


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(call(lambda _: None), id="no-fault"),
        pytest.param(drop, id="dropped"),
        pytest.param(status(503), id="refused-for-now"),
        pytest.param(lose_response, id="lost-answer"),
    ],
)
def test_it_lands_once(hub: LoopbackHub, commit: Commit, action: Action) -> None:
    """Whatever befalls the first request, there is one commit in the end, and its name is known."""
    hub.fault("POST", "/commit/", action)
    assert landed(hub, commit) == Landed(hub.branches(REPO)["main"])
    assert commits_of_ours(hub) == 1


def test_every_answer_is_lost(hub: LoopbackHub, commit: Commit) -> None:
    """A commit that landed is found, also where no answer ever arrives."""
    hub.fault("POST", "/commit/", lose_response, times=FOR_EVER)
    assert landed(hub, commit) == Landed(hub.branches(REPO)["main"])
    assert commits_of_ours(hub) == 1


def test_under_another_title(hub: LoopbackHub, commit: Commit) -> None:
    """Somebody else's commit that makes the very same tree counts as this one."""
    hub.fault("POST", "/commit/", call(lambda hub: hub.push(REPO, {}, delete=("LICENSE",))))
    assert landed(hub, commit) == Landed(hub.branches(REPO)["main"])
    assert commits_of_ours(hub) == 0


def test_somebody_else_comes_first(hub: LoopbackHub, commit: Commit) -> None:
    """Another commit in between is a conflict that names it, and the branch stays as it is."""
    hub.fault("POST", "/commit/", call(lambda hub: hub.push(REPO, {"notes.txt": b"theirs"})))
    stranded = landed(hub, commit)
    assert isinstance(stranded, Stranded)
    assert stranded.state is State.CONFLICT
    assert stranded.head == hub.branches(REPO)["main"]
    assert "somebody else's commit" in stranded.error.happened
    assert "LICENSE" in hub.files(REPO)


def test_refused(hub: LoopbackHub, commit: Commit) -> None:
    """What certainly had no effect is not looked for, and not tried again."""
    hub.fault("POST", "/commit/", status(403), times=FOR_EVER)
    stranded = landed(hub, commit)
    assert isinstance(stranded, Stranded)
    assert (stranded.state, stranded.error.status) == (State.NOT_PUBLISHED, 403)
    assert [path for method, path in hub.requests if method == "POST"] == [f"/api/models/{REPO}/commit/main"]


def test_nobody_knows(hub: LoopbackHub, commit: Commit) -> None:
    """Where the Hub cannot be read after a failed commit, it is not known whether it landed."""
    hub.fault("POST", "/commit/", drop, times=FOR_EVER)
    hub.fault("GET", "", drop, times=FOR_EVER)
    stranded = landed(hub, commit)
    assert isinstance(stranded, Stranded)
    assert stranded.state is State.UNKNOWN
    assert "whether it landed cannot be read" in stranded.error.happened
