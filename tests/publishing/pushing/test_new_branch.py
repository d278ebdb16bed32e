"""A variant on a branch: main's weights are never seen under its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, call, status
from publishing.stages import REPO, hurried, ours, sharded, whole, written

from safe_dtype.errors import PublishError
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import State, Target

TARGET = Target(REPO, "fp16", public=True)
FOR_EVER = 10**9


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder, made of the model that is on main."""
    return written(tmp_path / "stage", sharded(base=REPO))


def test_a_new_branch(hub: LoopbackHub, stage: Path) -> None:
    """The branch has its name only when everything is on it and was read; main stays, the temporary one goes."""
    hub.push(REPO, whole())
    named: list[bool] = []

    def look(hub: LoopbackHub) -> None:
        named.append("fp16" in hub.branches(REPO))

    for method, path in (("POST", "/commit/"), ("GET", "/resolve/"), ("DELETE", "/branch/")):
        hub.fault(method, path, call(look))
    main = hub.branches(REPO)["main"]
    receipt = push(stage, TARGET, api=hurried(hub))
    assert named == [False, False, True]
    assert hub.branches(REPO) == {"main": main, "fp16": receipt.oid}
    assert set(hub.files(REPO, "fp16")) == {*sharded(), "LICENSE", ".gitattributes"}
    assert receipt.deleted == ("model.safetensors",)


def test_an_existing_branch(hub: LoopbackHub, stage: Path, tmp_path: Path) -> None:
    """Another state of the variant is one more commit on its branch."""
    hub.push(REPO, whole())
    push(stage, TARGET, api=hurried(hub))
    push(written(tmp_path / "newer", sharded(fill=1, base=REPO)), TARGET, api=hurried(hub))
    assert len(ours(hub, revision="fp16")) == 2
    assert ours(hub) == []


def test_in_a_new_repository(hub: LoopbackHub, stage: Path) -> None:
    """A repository is made for it where there is none, private until the branch is there."""
    receipt = push(stage, TARGET, api=hurried(hub))
    assert (receipt.state, receipt.oid) == (State.PUBLISHED, hub.branches(REPO)["fp16"])
    assert not hub.is_private(REPO)
    assert set(hub.files(REPO)) == {".gitattributes"}


def test_somebody_else_makes_the_branch(hub: LoopbackHub, stage: Path) -> None:
    """A branch of that name that came meanwhile is left alone, and nothing of ours stays to be seen."""
    hub.push(REPO, whole())

    def make(hub: LoopbackHub) -> None:
        repository = hub.repositories[REPO]
        repository.branches["fp16"] = repository.branches["main"]

    hub.fault("POST", "/branch/fp16", call(make))
    with pytest.raises(PublishError, match="somebody else made") as error:
        push(stage, TARGET, api=hurried(hub))
    assert error.value.state == "conflict"
    assert set(hub.branches(REPO)) == {"main", "fp16"}
    assert hub.branches(REPO)["fp16"] == hub.branches(REPO)["main"]


def test_what_an_earlier_run_left(hub: LoopbackHub, stage: Path) -> None:
    """A temporary branch with the whole commit on it is used; one on an older main is made anew."""
    hub.push(REPO, whole())
    hub.fault("POST", "/branch/fp16", status(403), times=FOR_EVER)
    with pytest.raises(PublishError):
        push(stage, TARGET, api=hurried(hub))
    hub.clear_faults()
    sent = len(hub.requests)
    push(stage, TARGET, api=hurried(hub))
    assert not [path for _, path in hub.requests[sent:] if "/commit/" in path]


def test_a_temporary_branch_on_an_older_main(hub: LoopbackHub, stage: Path) -> None:
    """What main has gained since then is on the new branch as well."""
    hub.push(REPO, whole())
    hub.fault("POST", "/commit/", status(403), times=FOR_EVER)
    with pytest.raises(PublishError):
        push(stage, TARGET, api=hurried(hub))
    hub.clear_faults()
    hub.push(REPO, {"notes.txt": b"theirs"})
    push(stage, TARGET, api=hurried(hub))
    assert hub.files(REPO, "fp16")["notes.txt"] == b"theirs"
    assert set(hub.branches(REPO)) == {"main", "fp16"}
