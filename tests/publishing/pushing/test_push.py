"""Publishing a staged folder over real HTTP: in one commit, read back, and again."""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, lose_response, status
from publishing.stages import REPO, hurried, ours, sharded, whole, written

from safe_dtype.errors import NotPublishableError, PublishError
from safe_dtype.hub.client import Hub
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import State, Target

FOR_EVER = 10**9
PUBLIC, PRIVATE = Target(REPO, public=True), Target(REPO)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder."""
    return written(tmp_path / "stage", sharded())


def test_a_new_repository(hub: LoopbackHub, stage: Path) -> None:
    """Everything is there after one commit, in the right order: private, bytes, commit, read back, public."""
    receipt = push(stage, PUBLIC, api=hurried(hub))
    published = hub.files(REPO)
    assert {path: published[path] for path in sharded()} == sharded()
    assert (receipt.state, receipt.oid) == (State.PUBLISHED, hub.branches(REPO)["main"])
    assert not hub.is_private(REPO)
    assert [title for _, title in hub.commits(REPO)] == [f"safe-dtype: publish {receipt.publish_id}", "initial commit"]
    steps = ["/api/repos/create", "/preupload/main", "/commit/main", "/resolve/", "/settings"]
    found = [next(at for at, (_, path) in enumerate(hub.requests) if step in path) for step in steps]
    assert found == sorted(found)


def test_the_login_of_the_environment(hub: LoopbackHub, stage: Path) -> None:
    """Without a word about it, the Hub and the login are those of the client."""
    receipt = push(stage, PRIVATE, api=Hub.connect(endpoint=hub.url))
    assert (receipt.state, receipt.oid) == (State.PUBLISHED, hub.branches(REPO)["main"])


def test_it_stays_private_unless_told(hub: LoopbackHub, stage: Path) -> None:
    """A target that is not public is never shown."""
    assert push(stage, PRIVATE, api=hurried(hub)).state is State.PUBLISHED
    assert hub.is_private(REPO)


def test_an_existing_repository(hub: LoopbackHub, stage: Path) -> None:
    """Stale weights go in the same commit; what is somebody else's stays."""
    hub.push(REPO, whole())
    receipt = push(stage, PUBLIC, api=hurried(hub))
    assert receipt.deleted == ("model.safetensors",)
    assert set(hub.files(REPO)) == {*sharded(), "LICENSE", ".gitattributes"}
    assert len(hub.commits(REPO)) == 3


def test_twice_is_once(hub: LoopbackHub, stage: Path) -> None:
    """The same folder again changes nothing, and says where it is."""
    first = push(stage, PUBLIC, api=hurried(hub))
    sent = len(hub.requests)
    again = push(stage, PUBLIC, api=hurried(hub))
    assert again == first
    assert len(ours(hub)) == 1
    assert not [path for method, path in hub.requests[sent:] if method in ("POST", "PUT", "DELETE")]


def test_a_new_state_replaces_the_old(hub: LoopbackHub, tmp_path: Path) -> None:
    """What the earlier publication had brought and this one has not is deleted; nobody else's file is."""
    before = {**sharded(), "plots/range.svg": b"<svg/>"}
    evidence = json.loads(before["safe_dtype.json"])
    evidence["files"]["plots/range.svg"] = {"size": 6, "sha256": sha256(b"<svg/>").hexdigest()}
    before["safe_dtype.json"] = json.dumps(evidence).encode()
    push(written(tmp_path / "old", before), PUBLIC, api=hurried(hub))
    hub.push(REPO, {"notes.txt": b"theirs"})
    receipt = push(written(tmp_path / "new", sharded(fill=1)), PUBLIC, api=hurried(hub))
    assert receipt.deleted == ("plots/range.svg",)
    assert hub.files(REPO)["notes.txt"] == b"theirs"
    assert len(ours(hub)) == 2


def test_a_lost_response_is_found_again(hub: LoopbackHub, stage: Path) -> None:
    """The commit landed and its answer did not: that is a success, of one commit."""
    hub.fault("POST", "/commit/", lose_response, times=FOR_EVER)
    assert push(stage, PUBLIC, api=hurried(hub)).state is State.PUBLISHED
    assert len(ours(hub)) == 1


def test_a_public_repository_is_not_written_to_by_accident(hub: LoopbackHub, stage: Path) -> None:
    """What was to be private is not put where everybody sees it."""
    hub.push(REPO, whole())
    with pytest.raises(NotPublishableError, match="is public"):
        push(stage, PRIVATE, api=hurried(hub))
    assert not [path for method, path in hub.requests if method != "GET"]


def test_somebody_elses_private_repository_is_not_shown(hub: LoopbackHub, stage: Path) -> None:
    """Only a repository that was made for it is made public."""
    hub.push(REPO, whole())
    hub.repositories[REPO].private = True
    receipt = push(stage, PUBLIC, api=hurried(hub))
    assert "still is" in receipt.note
    assert hub.is_private(REPO)


def test_the_visibility_can_be_made_up_for(hub: LoopbackHub, stage: Path) -> None:
    """A repository whose visibility could not be changed is private, whole and verified, and public after a re-run."""
    hub.fault("PUT", "/settings", status(503), times=FOR_EVER)
    with pytest.raises(PublishError) as error:
        push(stage, PUBLIC, api=hurried(hub))
    assert error.value.state == "published-private"
    assert hub.is_private(REPO)
    hub.clear_faults()
    push(stage, PUBLIC, api=hurried(hub))
    assert not hub.is_private(REPO)
    assert len(ours(hub)) == 1


@pytest.mark.parametrize(
    ("token", "repo", "facts"),
    [
        pytest.param("hf_wrong", REPO, ("nobody", "hf auth login"), id="a-wrong-token"),
        pytest.param(False, REPO, ("nobody", "hf auth login"), id="no-token"),
        pytest.param(LoopbackHub.stranger_token, REPO, ("account stranger", "access"), id="no-right"),
        pytest.param(None, "elsewhere/model", ("account tester", "access"), id="somebody-elses-namespace"),
    ],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "existing"])
def test_who_may_not(
    hub: LoopbackHub, stage: Path, token: str | bool | None, repo: str, facts: tuple[str, str], there: bool
) -> None:
    """Who may not write is told so before a byte is sent, with the account, the next step, and without the token."""
    if there:
        hub.push(repo, whole())
    with pytest.raises(PublishError) as error:
        push(stage, Target(repo, public=True), api=hurried(hub, token))
    assert error.value.state == "not-started"
    assert all(fact in str(error.value) for fact in facts)
    assert str(token or hub.token) not in str(error.value)
    assert not [path for _, path in hub.requests if "preupload" in path or "lfs" in path]


def test_a_card_that_the_hub_refuses(hub: LoopbackHub, tmp_path: Path) -> None:
    """A README whose YAML the Hub does not accept is the folder's fault, and nothing is committed."""
    stage = written(tmp_path / "stage", {**sharded(), "README.md": b"---\ntags: one\n---\n"})
    with pytest.raises(NotPublishableError, match=r"README\.md"):
        push(stage, PUBLIC, api=hurried(hub))
    assert ours(hub) == []


def test_it_waits_as_long_as_the_hub_asks(hub: LoopbackHub, stage: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit of the Hub with Retry-After is waited for, and the push goes on."""
    caplog.set_level(logging.DEBUG)
    hub.fault("GET", "/api/models/.*/revision/main", status(429, retry_after=1))
    assert push(stage, PUBLIC, api=hurried(hub)).state is State.PUBLISHED
    assert hub.token not in caplog.text


def test_progress_is_what_arrived(hub: LoopbackHub, stage: Path) -> None:
    """Hashing, upload and reading back are told of, each up to its end."""
    heard: list[tuple[str, int, int]] = []
    push(stage, PUBLIC, api=hurried(hub), progress=lambda *told: heard.append(told))
    last = {what: (done, total) for what, done, total in heard}
    size = sum(map(len, sharded().values()))
    assert last == {"hash": (size, size), "upload": (size, size), "read back": (len(sharded()), len(sharded()))}
