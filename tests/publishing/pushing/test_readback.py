"""What is on the Hub is held against what should be there, and told apart from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from publishing.faults import Action
from publishing.loopback import LoopbackHub, call, status
from publishing.stages import REPO, hurried, ours, safetensors, sharded, written

from safe_dtype.errors import PublishError
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.pushing.readback import verify
from safe_dtype.publishing.release import State, Target

TARGET = Target(REPO, public=True)
SHARD = "model-00001-of-00002.safetensors"
FOR_EVER = 10**9


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder."""
    return written(tmp_path / "stage", sharded())


def spoilt(path: str, content: bytes | None) -> Callable[[LoopbackHub], None]:
    """Return what makes the server's newest commit hold something else at `path`, under the same name."""

    def spoil(hub: LoopbackHub) -> None:
        repository = hub.repositories[REPO]
        commit = repository.commits[repository.branches["main"]]
        tree = {one: entry for one, entry in commit.tree.items() if one != path or content is not None}
        if content is not None:
            tree[path] = hub._entry(path, content)
        repository.commits[repository.branches["main"]] = replace(commit, tree=tree)

    return spoil


@pytest.mark.parametrize(
    ("path", "action"),
    [
        pytest.param("/tree/{oid}", status(404, error_code="RevisionNotFound"), id="the-list-of-files"),
        pytest.param("/resolve/{oid}/config.json", status(404, error_code="EntryNotFound"), id="a-small-file"),
        pytest.param(f"/resolve/{{oid}}/{SHARD}", status(404, error_code="RevisionNotFound"), id="a-header"),
        pytest.param("/tree/{oid}", status(503), id="overloaded"),
        pytest.param("/tree/{oid}", status(429, retry_after=0), id="too-many-requests"),
    ],
)
def test_a_server_that_lags(hub: LoopbackHub, stage: Path, path: str, action: Action) -> None:
    """A commit that is not seen everywhere at once is waited for: it is published, and not called unverified."""

    def lag(hub: LoopbackHub) -> None:
        hub.fault("*", path.format(oid=hub.branches(REPO)["main"]), action, times=2)

    hub.fault("POST", "/commit/", call(lag, after=True))
    receipt = push(stage, TARGET, api=hurried(hub))
    assert (receipt.state, receipt.oid) == (State.PUBLISHED, hub.branches(REPO)["main"])
    assert len(ours(hub)) == 1
    assert not hub.is_private(REPO)


def test_a_server_that_lags_behind_for_ever(hub: LoopbackHub, stage: Path) -> None:
    """It is not waited for without end; a later run reads it back, and makes no second commit."""

    def lag(hub: LoopbackHub) -> None:
        hub.fault(
            "GET", f"/tree/{hub.branches(REPO)['main']}", status(404, error_code="RevisionNotFound"), times=FOR_EVER
        )

    hub.fault("POST", "/commit/", call(lag, after=True))
    with pytest.raises(PublishError) as error:
        push(stage, TARGET, api=hurried(hub))
    assert error.value.state == "published-unverified"
    hub.clear_faults()
    assert push(stage, TARGET, api=hurried(hub)).state is State.PUBLISHED
    assert len(ours(hub)) == 1


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        pytest.param("config.json", b"{}", "config.json is another file", id="small"),
        pytest.param(SHARD, safetensors("F32", "w1"), f"{SHARD} is another file", id="large"),
        pytest.param("config.json", None, "config.json is missing", id="missing"),
    ],
)
def test_a_server_that_keeps_something_else(
    hub: LoopbackHub, stage: Path, path: str, content: bytes | None, problem: str
) -> None:
    """What the server made of the commit is compared with the folder, and a difference is not called published."""
    hub.fault("POST", "/commit/", call(spoilt(path, content), after=True))
    with pytest.raises(PublishError, match=problem) as error:
        push(stage, TARGET, api=hurried(hub))
    assert error.value.state == "published-broken"
    assert hub.is_private(REPO)


@pytest.mark.parametrize("path", [SHARD, "README.md"])
def test_a_server_that_gives_back_something_else(hub: LoopbackHub, stage: Path, path: str) -> None:
    """The right hash in a list does not prove the right bytes: small files and headers are read."""
    hub.fault("POST", "/commit/", call(garbled(path), after=True))
    with pytest.raises(PublishError, match=f"{path} .*when it is downloaded") as error:
        push(stage, TARGET, api=hurried(hub))
    assert error.value.state == "published-broken"


def garbled(path: str) -> Callable[[LoopbackHub], None]:
    """Return what makes the server answer with other bytes for `path`, and list it under the right hash."""

    def garble(hub: LoopbackHub) -> None:
        repository = hub.repositories[REPO]
        commit = repository.commits[repository.branches["main"]]
        entry = commit.tree[path]
        if entry.sha256 is not None:
            hub.large[entry.sha256] = hub.large[entry.sha256].replace(b"F16", b"F64")
        else:
            tree = {**commit.tree, path: replace(entry, content=b"something else")}
            repository.commits[repository.branches["main"]] = replace(commit, tree=tree)

    return garble


class TestVerify:
    """What was published can be checked later, by anybody."""

    @pytest.mark.parametrize("with_folder", [False, True], ids=["by-itself", "by-the-folder"])
    @pytest.mark.parametrize("full", [False, True], ids=["hashes", "full"])
    def test_right(self, hub: LoopbackHub, stage: Path, with_folder: bool, full: bool) -> None:
        """A publication verifies against the folder it came from, and against its own list of files."""
        oid = push(stage, TARGET, api=hurried(hub)).oid
        found = verify(TARGET, api=hurried(hub), against=stage if with_folder else None, full=full)
        assert (found.right, found.oid, found.problems) == (True, oid, ())
        assert found.files == len(sharded()) - (
            0 if with_folder else 2
        )  # its own list has neither itself nor the card

    def test_an_earlier_commit(self, hub: LoopbackHub, stage: Path) -> None:
        """A commit is verified as it was, whatever came after."""
        oid = push(stage, TARGET, api=hurried(hub)).oid
        hub.push(REPO, {"config.json": b"{}"})
        assert verify(Target(REPO, str(oid)), api=hurried(hub)).right
        assert verify(TARGET, api=hurried(hub)).problems == ("config.json is another file",)
        assert verify(TARGET, api=hurried(hub), against=stage).problems[0] == "config.json is another file"

    def test_only_the_full_one_reads_every_byte(self, hub: LoopbackHub, stage: Path) -> None:
        """Weights that are listed under the right hash and come out wrong are found by downloading them."""
        push(stage, TARGET, api=hurried(hub))
        repository = hub.repositories[REPO]
        sha256 = repository.tree("main")[SHARD].sha256
        assert sha256 is not None
        hub.large[sha256] = hub.large[sha256][:-1] + b"?"
        assert verify(TARGET, api=hurried(hub)).right
        assert verify(TARGET, api=hurried(hub), full=True).problems == (
            f"{SHARD} is another file when it is downloaded",
        )

    def test_nothing_to_hold_it_against(self, hub: LoopbackHub) -> None:
        """A repository without evidence is not called right."""
        hub.push(REPO, {"config.json": b"{}"})
        assert not verify(TARGET, api=hurried(hub)).right

    @pytest.mark.parametrize("with_folder", [False, True], ids=["by-itself", "by-the-folder"])
    def test_weights_that_came_later(self, hub: LoopbackHub, stage: Path, with_folder: bool) -> None:
        """Weights that from_pretrained would load instead are a problem, though all that was published is there."""
        push(stage, TARGET, api=hurried(hub))
        hub.push(REPO, {"model.safetensors": safetensors("F32", "w1")})
        (problem,) = verify(TARGET, api=hurried(hub), against=stage if with_folder else None).problems
        assert problem == "model.safetensors may be loaded instead of the published weights"

    def test_not_there(self, hub: LoopbackHub) -> None:
        """What cannot be read is neither right nor wrong."""
        with pytest.raises(PublishError, match="account tester"):
            verify(TARGET, api=hurried(hub))
