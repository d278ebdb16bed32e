"""The bytes arrive first and nobody sees them; then one commit shows all of them, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, call, status
from publishing.repository import IgnoreRules
from publishing.stages import REPO, hurried, ours, sharded, whole, written

from safe_dtype.errors import PublishError
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import State, Target

FOR_EVER = 10**9
PUBLIC = Target(REPO, public=True)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder."""
    return written(tmp_path / "stage", sharded())


def test_somebody_else_comes_first(hub: LoopbackHub, stage: Path) -> None:
    """A commit of somebody else's in between is a conflict that names it, and nothing of ours is visible."""
    hub.push(REPO, whole())
    hub.fault("POST", "/commit/", call(lambda hub: hub.push(REPO, {"notes.txt": b"theirs"})))
    with pytest.raises(PublishError, match="somebody else's commit") as conflict:
        push(stage, PUBLIC, api=hurried(hub))
    assert conflict.value.state == "conflict"
    assert ours(hub) == []
    assert push(stage, PUBLIC, api=hurried(hub)).state is State.PUBLISHED


@pytest.mark.parametrize(
    ("path", "state"),
    [
        pytest.param("notes.txt", State.PUBLISHED, id="another-file"),
        pytest.param("README.md", State.CONFLICT, id="a-file-of-ours"),
        pytest.param("model.safetensors", State.CONFLICT, id="a-file-that-goes"),
    ],
)
def test_rebase(hub: LoopbackHub, stage: Path, path: str, state: State) -> None:
    """Rebasing goes on where somebody else's commit touches other files, and stops where it touches ours."""
    hub.push(REPO, whole())
    hub.fault("POST", "/commit/", call(lambda hub: hub.push(REPO, {path: b"theirs"})))
    found = State.PUBLISHED
    try:
        push(stage, PUBLIC, api=hurried(hub), rebase=True)
    except PublishError as exc:
        found = State(exc.state)
    assert found is state
    assert hub.files(REPO)[path] == b"theirs"
    assert len(ours(hub)) == (1 if state is State.PUBLISHED else 0)


def test_rebase_gives_up(hub: LoopbackHub, stage: Path) -> None:
    """Where somebody else commits without end, rebasing ends in the conflict."""
    hub.push(REPO, whole())
    hub.fault("POST", "/commit/", call(lambda hub: hub.push(REPO, {"n": str(len(hub.requests)).encode()})), FOR_EVER)
    with pytest.raises(PublishError) as conflict:
        push(stage, PUBLIC, api=hurried(hub), rebase=True)
    assert conflict.value.state == "conflict"


def test_a_gitignore_of_the_repository_keeps_nothing_out(hub: LoopbackHub, stage: Path) -> None:
    """The client drops without a word what the repository's .gitignore names; what was staged is published."""
    hub.push(REPO, {".gitignore": b"*.json\n*.safetensors\n"})
    push(stage, PUBLIC, api=hurried(hub))
    assert sharded().items() <= hub.files(REPO).items()


def test_a_gitignore_that_the_server_insists_on(
    hub: LoopbackHub, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server would drop files all the same, nothing is committed, and the error names them."""
    hub.push(REPO, whole())
    monkeypatch.setattr(type(hub.repositories[REPO]), "ignores", lambda *_: IgnoreRules("*.json"))
    with pytest.raises(PublishError, match=r"\.gitignore .*config\.json") as error:
        push(stage, PUBLIC, api=hurried(hub))
    assert error.value.state == "not-published"
    assert ours(hub) == []


def test_a_folder_that_changes_meanwhile(hub: LoopbackHub, stage: Path) -> None:
    """A file that is written to after it was hashed is not published."""

    def write(_: LoopbackHub) -> None:
        (stage / "config.json").write_bytes(b"{}")

    hub.fault("GET", "/tree/", call(write))
    hub.push(REPO, whole())
    with pytest.raises(PublishError, match=r"config\.json was changed"):
        push(stage, PUBLIC, api=hurried(hub))
    assert ours(hub) == []


def test_what_has_arrived_is_not_sent_again(hub: LoopbackHub, stage: Path) -> None:
    """After a commit that failed, a second run sends no large file once more."""
    hub.push(REPO, whole())
    hub.fault("POST", "/commit/", status(500), times=FOR_EVER)
    with pytest.raises(PublishError):
        push(stage, PUBLIC, api=hurried(hub))
    assert hub.files(REPO)["config.json"] == whole()["config.json"]
    hub.clear_faults()
    first = len(hub.requests)
    assert push(stage, PUBLIC, api=hurried(hub)).state is State.PUBLISHED
    assert not [path for method, path in hub.requests[first:] if method == "PUT"]
