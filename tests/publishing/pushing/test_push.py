"""Publishing a staged folder over real HTTP: in one commit, read back, and again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, call, lose_response, status
from publishing.repository import IgnoreRules
from publishing.stages import REPO, held, hurried, ours, sharded, whole, written

from safe_dtype.errors import NotPublishableError, PublishError
from safe_dtype.hub.client import Hub
from safe_dtype.publishing.pushing.journal import read_receipt, receipt_path
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
    evidence["files"]["plots/range.svg"] = {"size": 6, "sha256": "?"}
    before["safe_dtype.json"] = json.dumps(evidence).encode()
    push(written(tmp_path / "old", before), PUBLIC, api=hurried(hub))
    hub.push(REPO, {"notes.txt": b"theirs"})
    receipt = push(written(tmp_path / "new", sharded(fill=1)), PUBLIC, api=hurried(hub))
    assert receipt.deleted == ("plots/range.svg",)
    assert hub.files(REPO)["notes.txt"] == b"theirs"
    assert len(ours(hub)) == 2


def test_the_receipt_tells_how_far_it_came(hub: LoopbackHub, stage: Path) -> None:
    """Before others could see a thing, the receipt beside the folder says that it may be so."""
    seen: list[State] = []

    def look(_: LoopbackHub) -> None:
        receipt = read_receipt(stage)
        assert receipt is not None
        seen.append(receipt.state)

    for method, path in (("POST", "/preupload/"), ("POST", "/commit/"), ("GET", "/resolve/"), ("PUT", "/settings")):
        hub.fault(method, path, call(look))
    receipt = push(stage, PUBLIC, api=hurried(hub))
    assert seen == [State.NOT_PUBLISHED, State.UNKNOWN, State.UNVERIFIED, State.PRIVATE]
    assert read_receipt(stage) == receipt
    assert receipt_path(stage).parent == stage.parent
    assert held(stage) == sharded()


def test_a_lost_response_is_found_again(hub: LoopbackHub, stage: Path) -> None:
    """The commit landed and its answer did not: that is a success, of one commit."""
    hub.fault("POST", "/commit/", lose_response, times=FOR_EVER)
    assert push(stage, PUBLIC, api=hurried(hub)).state is State.PUBLISHED
    assert len(ours(hub)) == 1


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


def test_a_folder_that_changes_meanwhile(hub: LoopbackHub, stage: Path) -> None:
    """A file that is written to after it was hashed is not published."""

    def write(_: LoopbackHub) -> None:
        (stage / "config.json").write_bytes(b"{}")

    hub.fault("GET", "/tree/", call(write))
    hub.push(REPO, whole())
    with pytest.raises(PublishError, match=r"config\.json was changed"):
        push(stage, PUBLIC, api=hurried(hub))
    assert ours(hub) == []


def test_a_receipt_that_cannot_be_written(hub: LoopbackHub, stage: Path) -> None:
    """Without a receipt nothing is sent."""
    hub.push(REPO, whole())
    receipt_path(stage).mkdir()
    with pytest.raises(PublishError, match="receipt"):
        push(stage, PUBLIC, api=hurried(hub))
    assert not [path for method, path in hub.requests if method != "GET"]


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
