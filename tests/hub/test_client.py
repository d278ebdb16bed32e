"""The Hub that is written to: every call of it, over real HTTP, with faults that pass and faults that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publishing.loopback import LoopbackHub, drop, status
from publishing.stages import REPO, hurried, safetensors, whole, written

from safe_dtype.hub.client import Commit, Hub
from safe_dtype.hub.errors import HubError
from safe_dtype.publishing.staging.manifest import manifest_of

TITLE = "one commit"


def commit_to(hub: LoopbackHub, **operations: Any) -> Commit:
    """Return a commit on the head of main."""
    return Commit(REPO, "main", TITLE, hub.branches(REPO)["main"], **operations)


def test_what_is_there(hub: LoopbackHub, tmp_path: Path) -> None:
    """Head, tree, commits, bytes and headers are those of the commit that was asked for, not of the head."""
    first = hub.push(REPO, whole())
    hub.push(REPO, {"config.json": b"{}"})
    api = hurried(hub)
    assert (api.head(REPO, "main").oid, api.head(REPO, first).oid) == (hub.branches(REPO)["main"], first)
    assert [oid for oid, _ in api.commits(REPO, "main")][:2] == [hub.branches(REPO)["main"], first]
    digests = manifest_of(written(tmp_path / "whole", whole()))
    tree = api.tree(REPO, first)
    assert all(tree[path].holds(digest) for path, digest in digests.items())
    assert not api.tree(REPO, "main")["config.json"].holds(digests["config.json"])
    assert api.fetch(REPO, "config.json", first) == whole()["config.json"]
    assert api.header(REPO, "model.safetensors", first)["w2"] == ("BF16", (4,), (8, 16))
    path = api.download(REPO, "model.safetensors", first, tmp_path)
    assert path.read_bytes() == whole()["model.safetensors"]


def test_one_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    """One commit deletes, copies from an earlier commit, and adds."""
    first = hub.push(REPO, whole())
    hub.push(REPO, {"config.json": b"{}"})
    api = hurried(hub)
    folder = written(tmp_path, {"b.safetensors": safetensors("F16", "b"), "notes.txt": b"small"})
    additions = api.additions(folder, ["b.safetensors", "notes.txt"], manifest_of(folder))
    arrived: list[tuple[str, int, int]] = []
    api.upload(REPO, "main", additions, lambda *step: arrived.append(step))
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert arrived == [("upload", size, size)]
    assert "notes.txt" not in hub.files(REPO)  # nobody sees it before the commit
    operations = {"delete": ("LICENSE",), "copy": ("config.json",), "copy_from": first, "additions": additions}
    oid = api.commit(commit_to(hub, **operations))
    assert hub.commits(REPO)[0] == (oid, TITLE)
    before = {path: content for path, content in whole().items() if path != "LICENSE"}
    new = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {path: content for path, content in hub.files(REPO).items() if path != ".gitattributes"} == before | new


def test_a_file_that_changed(hub: LoopbackHub, tmp_path: Path) -> None:
    """A file that is not what its manifest says is not sent."""
    folder = written(tmp_path, {"config.json": b"{}"})
    manifest = manifest_of(folder)
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(HubError) as error:
        hurried(hub).additions(folder, ["config.json"], manifest)
    assert "config.json was changed" in error.value.happened
    assert error.value.definite


def test_branches(hub: LoopbackHub) -> None:
    """A branch is made once, stays where it is, and is deleted whether it is there or not."""
    first = hub.push(REPO, whole())
    head = hub.push(REPO, {"config.json": b"{}"})
    api = hurried(hub)
    api.create_branch(REPO, "v1", first)
    api.create_branch(REPO, "v1", head)
    assert hub.branches(REPO)["v1"] == first
    for _ in range(2):
        api.delete_branch(REPO, "v1")
    assert set(hub.branches(REPO)) == {"main"}


def test_a_repository(hub: LoopbackHub) -> None:
    """A new repository is private until it is shown; one that is there stays as it is."""
    api = hurried(hub)
    for _ in range(2):
        api.create_repo(REPO)
        assert hub.is_private(REPO)
    api.require_write(REPO)
    api.make_public(REPO)
    assert not hub.is_private(REPO)


READS: dict[str, Callable[[Hub], object]] = {
    "head": lambda api: api.head(REPO, "main"),
    "tree": lambda api: api.tree(REPO, "main"),
    "commits": lambda api: api.commits(REPO, "main"),
    "fetch": lambda api: api.fetch(REPO, "config.json", "main"),
}


@pytest.mark.parametrize("name", READS)
def test_passing_faults_are_tried_again(hub: LoopbackHub, name: str) -> None:
    """A read goes on after a dropped connection and a 503, and gives up when that does not end."""
    hub.push(REPO, whole())
    hub.fault("*", REPO, drop)
    hub.fault("*", REPO, status(503))
    assert READS[name](hurried(hub))
    hub.fault("*", REPO, status(503), times=99)
    with pytest.raises(HubError) as error:
        READS[name](hurried(hub))
    assert error.value.passing


def test_a_commit_is_made_once(hub: LoopbackHub) -> None:
    """A commit that fails is not tried again here: it may have landed."""
    hub.push(REPO, whole())
    hub.fault("POST", "/commit/", drop, times=99)
    commit = commit_to(hub, delete=("LICENSE",))
    with pytest.raises(HubError) as error:
        hurried(hub).commit(commit)
    assert not error.value.definite
    assert [path for _, path in hub.requests if "/commit/" in path] == [f"/api/models/{REPO}/commit/main"]


def test_a_commit_on_an_old_head(hub: LoopbackHub) -> None:
    """A commit whose parent is not the head any more is refused, and nothing is changed."""
    hub.push(REPO, whole())
    commit = commit_to(hub, delete=("LICENSE",))
    hub.push(REPO, {"config.json": b"{}"})
    with pytest.raises(HubError) as error:
        hurried(hub).commit(commit)
    assert error.value.status == 412
    assert "LICENSE" in hub.files(REPO)


@pytest.mark.parametrize(
    ("token", "who"),
    [
        pytest.param("hf_wrong", "nobody", id="a-wrong-token"),
        pytest.param(LoopbackHub.stranger_token, "the account stranger", id="no-right"),
    ],
)
def test_who(hub: LoopbackHub, token: str, who: str) -> None:
    """Where a login decides, the description names the account; it never holds the token."""
    hub.create(REPO, private=True)
    api = hurried(hub, token)
    with pytest.raises(HubError) as error:
        api.head(REPO, "main")
    assert f"(as {who}" in api.describe(error.value)
    assert token not in api.describe(HubError(f"a text with {token} in it", "push again"))
