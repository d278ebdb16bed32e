"""The model that a variant was made of is neither overwritten, nor opened where it is gated."""

from __future__ import annotations

from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, status
from publishing.stages import REPO, hurried, sharded, whole, written

from safe_dtype.errors import NotPublishableError, PublishError
from safe_dtype.publishing.pushing.changes import diff
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import State, Target

BASE = "org/model"
TARGET = Target(REPO, public=True)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder, made of BASE."""
    return written(tmp_path / "stage", sharded(base=BASE))


def test_not_over_the_model_itself(hub: LoopbackHub, tmp_path: Path) -> None:
    """A variant does not replace what it was made of; a branch of it is fine."""
    hub.push(REPO, whole())
    stage = written(tmp_path / "stage", sharded(base=REPO))
    with pytest.raises(NotPublishableError, match="made of"):
        diff(stage, TARGET, api=hurried(hub))
    assert diff(stage, Target(REPO, "fp16", public=True), api=hurried(hub)).creates_branch


@pytest.mark.parametrize("there", ["nothing", "open", "private"])
def test_what_is_gated_is_not_opened(hub: LoopbackHub, stage: Path, there: str) -> None:
    """Who gates a model wants its readers to agree to something: its variant is not shown to everybody, and nothing is sent."""
    hub.create(BASE, gated=True)
    if there != "nothing":
        hub.create(REPO, private=there == "private")
    with pytest.raises(NotPublishableError, match="access requests") as caught:
        push(stage, TARGET, api=hurried(hub))
    assert caught.value.state == State.NOT_STARTED
    assert BASE in str(caught.value)
    assert [method for method, _ in hub.requests] == ["GET"] * len(hub.requests)
    with pytest.raises(NotPublishableError, match=BASE):
        diff(stage, TARGET, api=hurried(hub))


def test_what_is_gated_goes_where_it_stays_so(hub: LoopbackHub, stage: Path) -> None:
    """A private repository and a gated one show it to nobody who did not ask; a branch of the base is as gated as that."""
    hub.create(BASE, gated=True)
    assert push(stage, Target(REPO), api=hurried(hub)).state is State.PUBLISHED
    assert hub.is_private(REPO)
    hub.repositories[REPO].gated = True
    hub.repositories[REPO].private = False
    assert push(stage, TARGET, api=hurried(hub)).state is State.PUBLISHED
    assert push(stage, Target(BASE, "fp16", public=True), api=hurried(hub)).state is State.PUBLISHED


def test_a_base_that_cannot_be_read(hub: LoopbackHub, stage: Path) -> None:
    """Where nobody can tell whether it is gated nothing is sent; one that is not on this Hub gates nothing."""
    assert diff(stage, TARGET, api=hurried(hub)).creates_repo
    hub.fault("GET", rf"{BASE}/revision/main$", status(503), times=99)
    with pytest.raises(PublishError) as caught:
        push(stage, TARGET, api=hurried(hub))
    assert caught.value.state == State.NOT_STARTED
    assert hub.repositories == {}
