"""The loopback Hub does to the real client what the Hub does, as far as a publisher and a loader see it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash
from publishing.client import httpx, in_child
from publishing.loopback import LoopbackHub, call, drop, lose_response, status, truncate
from publishing.repository import IgnoreRules

REPO = "org/model"
FILES = {"config.json": b'{"dtype": "float16"}', "model.safetensors": bytes(range(256)) * 64}

_LOAD = """
import pathlib, sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("org/model", revision=sys.argv[2])
shards = pathlib.Path(sys.argv[1]).glob("*.safetensors")
saved = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
loaded = {name: tensor.detach() for name, tensor in model.state_dict().items()}
same = all(loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor) for name, tensor in saved.items())
print(len(saved), same)
"""
_PUBLISH = """
import sys, pathlib
from huggingface_hub import CommitOperationAdd, HfApi
files = [one for one in sorted(pathlib.Path(sys.argv[1]).iterdir()) if one.suffix in (".json", ".safetensors")]
HfApi().create_repo("org/model")
adds = [CommitOperationAdd(one.name, one) for one in files]
print(HfApi().create_commit("org/model", adds, commit_message="publish").oid)
"""


def adds(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    """Return the operations that add `files`."""
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def published(api: HfApi, **how: Any) -> str:
    """Put `FILES` into a new repository; return the commit."""
    api.create_repo(REPO)
    return str(api.create_commit(REPO, adds(FILES), commit_message="publish", **how).oid)


def named(hub: LoopbackHub) -> list[tuple[str, str]]:
    """Return the requests so far, without the names of commits and of large files, each once."""
    found = [(method, re.sub(r"[0-9a-f]{64}|[0-9a-f]{40}", "*", path)) for method, path in hub.requests]
    return list(dict.fromkeys(found))


def test_a_commit_holds_what_was_sent(hub: LoopbackHub, api: HfApi) -> None:
    """`create_commit` puts every file there with its bytes, small and large, in one commit."""
    oid = published(api)
    assert hub.files(REPO, oid) == {**FILES, ".gitattributes": hub.files(REPO)[".gitattributes"]}
    assert [title for _, title in hub.commits(REPO)] == ["publish", "initial commit"]


def test_the_requests_of_a_commit(hub: LoopbackHub, api: HfApi) -> None:
    """A client that makes other requests to commit is seen here first."""
    api.create_repo(REPO)
    hub.requests.clear()
    api.create_commit(REPO, adds({**FILES, "README.md": b"---\ntags: [a]\n---\n"}), commit_message="publish")
    assert named(hub) == [
        ("POST", "/api/validate-yaml"),
        ("POST", "/api/models/org/model/preupload/main"),
        ("POST", "/org/model.git/info/lfs/objects/batch"),
        ("PUT", "/lfs/*"),
        ("POST", "/lfs/*/verify"),
        ("POST", "/api/models/org/model/commit/main"),
    ]


@pytest.mark.slow
def test_transformers_loads_what_was_committed(hub: LoopbackHub, api: HfApi, tiny_qwen3: Path) -> None:
    """What `create_commit` sent comes out of `from_pretrained` bit by bit, in these requests."""
    api.create_repo(REPO)
    files = [one for one in sorted(tiny_qwen3.iterdir()) if one.suffix in (".json", ".safetensors")]
    api.create_commit(REPO, [CommitOperationAdd(one.name, one) for one in files], commit_message="publish")
    hub.requests.clear()
    assert in_child(hub, _LOAD, tiny_qwen3, "main").split() == ["46", "True"]
    at = "/org/model/resolve/*"
    assert set(named(hub)) == {
        ("GET", "/api/models/org/model/revision/main"),
        ("GET", "/api/models/org/model/tree/*"),
        ("HEAD", f"{at}/adapter_config.json"),
        ("HEAD", f"{at}/config.json"),
        ("GET", f"{at}/config.json"),
        ("HEAD", f"{at}/model.safetensors"),
        ("HEAD", f"{at}/model.safetensors.index.json"),
        ("GET", f"{at}/model.safetensors.index.json"),
        *(("HEAD", f"{at}/model-0000{shard}-of-00003.safetensors") for shard in (1, 2, 3)),
        ("GET", "/lfs/*"),
        ("HEAD", f"{at}/generation_config.json"),
        ("GET", f"{at}/generation_config.json"),
    }


def test_xet_keeps_what_was_committed(tmp_path: Path) -> None:
    """Over Xet no large file passes the Hub, and the Hub can read it where the client put it."""
    folder, content = tmp_path / "stage", bytes(range(256)) * 1024
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    with LoopbackHub(xet=tmp_path / "xet") as hub:
        in_child(hub, _PUBLISH, folder, xet=True)
        assert hub.files(REPO)["model.safetensors"] == content
        assert ("GET", "/api/models/org/model/xet-write-token/main") in hub.requests
        assert not [path for _, path in hub.requests if "lfs" in path]


@pytest.mark.slow
def test_transformers_loads_over_xet(tmp_path: Path, tiny_qwen3: Path) -> None:
    """What was sent over Xet comes out of `from_pretrained` over Xet, bit by bit."""
    with LoopbackHub(xet=tmp_path) as hub:
        oid = in_child(hub, _PUBLISH, tiny_qwen3, xet=True).strip()
        assert in_child(hub, _LOAD, tiny_qwen3, oid, xet=True).split() == ["46", "True"]
        assert not [path for _, path in hub.requests if path.startswith("/lfs/")]


def test_a_commit_on_another_parent_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    """`parent_commit` that is not the head any more: 412, and nothing is changed."""
    oid = published(api)
    newer = hub.push(REPO, {"notes.txt": b"theirs"})
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(REPO, adds({"config.json": b"{}"}), commit_message="late", parent_commit=oid)
    assert refused.value.response.status_code == 412
    assert hub.commits(REPO)[0] == (newer, "somebody else's commit")
    assert hub.files(REPO)["config.json"] == FILES["config.json"]


def test_one_commit_adds_copies_and_deletes(hub: LoopbackHub, api: HfApi) -> None:
    """Deletes and copies from an earlier commit, of small and large files, ride with what is added."""
    oid = published(api)
    api.create_commit(REPO, [CommitOperationDelete(path) for path in FILES], commit_message="empty")
    assert set(hub.files(REPO)) == {".gitattributes"}
    copies = [CommitOperationCopy(path, f"old/{path}", src_revision=oid) for path in FILES]
    api.create_commit(REPO, [*copies, *adds({"a.txt": b"a"})], commit_message="back")
    assert {path: content for path, content in hub.files(REPO).items() if path.startswith("old/")} == {
        f"old/{path}": content for path, content in FILES.items()
    }
    api.create_commit(REPO, [CommitOperationDelete("old/", is_folder=True)], commit_message="without")
    assert set(hub.files(REPO)) == {".gitattributes", "a.txt"}


def test_the_tree_names_files_by_their_hashes(hub: LoopbackHub, api: HfApi) -> None:
    """A listing has sizes and hashes, of small files as git has them and of large ones their SHA-256."""
    oid = published(api)
    tree = {
        one.path: one for one in api.list_repo_tree(REPO, recursive=True, revision=oid) if isinstance(one, RepoFile)
    }
    described = {one.rfilename: one for one in api.model_info(REPO, files_metadata=True).siblings or ()}
    sha256 = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    for large in (tree["model.safetensors"], described["model.safetensors"]):
        assert large.lfs is not None
        assert (large.lfs.sha256, large.size) == (sha256, len(FILES["model.safetensors"]))
    for small in (tree["config.json"], described["config.json"]):
        assert (small.blob_id, small.lfs) == (git_hash(FILES["config.json"]), None)


@pytest.mark.parametrize("path", FILES)
def test_ranges(hub: LoopbackHub, api: HfApi, path: str) -> None:
    """A part of a file can be read, also behind the redirect of a large one, where no token goes along."""
    url = hf_hub_url(REPO, path, revision=published(api), endpoint=hub.url)
    headers = {"Authorization": f"Bearer {hub.token}", "Range": "bytes=2-9"}
    found = httpx.get(url, headers=headers, follow_redirects=True)
    assert (found.status_code, found.content) == (206, FILES[path][2:10])
    assert ("Authorization" in found.request.headers) == (path == "config.json")


def test_branches(hub: LoopbackHub, api: HfApi) -> None:
    """A branch begins where it is told, moves apart from main, and is gone when it is deleted."""
    oid = published(api)
    api.create_branch(REPO, branch="safe-dtype/tmp", revision=oid)
    api.create_commit(REPO, adds({"b.txt": b"b"}), commit_message="apart", revision="safe-dtype/tmp")
    heads = {one.name: one.target_commit for one in api.list_repo_refs(REPO).branches}
    assert heads == hub.branches(REPO)
    assert heads["main"] == oid != heads["safe-dtype/tmp"]
    assert [one.title for one in api.list_repo_commits(REPO, revision="safe-dtype/tmp")][:2] == ["apart", "publish"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="main")
    api.delete_branch(REPO, branch="safe-dtype/tmp")
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree(REPO, revision="safe-dtype/tmp"))


def test_private_and_foreign_repositories(hub: LoopbackHub, api: HfApi) -> None:
    """What is private is not there for strangers, and what is others' is not to be written to."""
    api.create_repo(REPO, private=True)
    stranger = HfApi(endpoint=hub.url, token=hub.stranger_token)
    assert hub.is_private(REPO)
    for nobody in (stranger, HfApi(endpoint=hub.url, token=False)):
        with pytest.raises(RepositoryNotFoundError):
            nobody.model_info(REPO)
    api.update_repo_settings(REPO, private=False)
    assert stranger.model_info(REPO).private is False
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.auth_check(REPO, write=True)
    api.auth_check(REPO, write=True)
    assert (api.whoami()["name"], stranger.whoami()["name"]) == ("tester", "stranger")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.url, token="hf_wrong").whoami()


def test_gated_repositories(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    """A gated repository shows its description and keeps its files."""
    hub.push("base/model", FILES)
    hub.repositories["base/model"].gated = True
    assert api.model_info("base/model").gated == "auto"
    with pytest.raises(GatedRepoError):
        api.hf_hub_download("base/model", "config.json", cache_dir=tmp_path)


def test_repositories_come_and_go(hub: LoopbackHub, api: HfApi) -> None:
    """A name is taken once, and free again after its repository is deleted."""
    api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    api.create_repo(REPO, exist_ok=True)
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    api.create_repo(REPO)
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "config.json")


@pytest.mark.parametrize(
    "card", ["tags: one", "tags: [a", "base_model: /home/me/model"], ids=["no-list", "no-yaml", "no-name"]
)
def test_a_bad_card_is_refused(hub: LoopbackHub, api: HfApi, card: str) -> None:
    """The client asks whether the YAML of a card is right before it sends anything."""
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit(REPO, adds({"README.md": f"---\n{card}\n---\n".encode()}), commit_message="card")
    assert len(hub.commits(REPO)) == 1


def test_a_remote_gitignore_drops_files_silently(hub: LoopbackHub, api: HfApi) -> None:
    """The client leaves out what the `.gitignore` of the repository names, and says nothing."""
    hub.push(REPO, {".gitignore": b"*.json\n"})
    api.create_commit(REPO, adds(FILES), commit_message="publish")
    assert set(hub.files(REPO)) == {".gitattributes", ".gitignore", "model.safetensors"}
    operations = adds(FILES)
    api.preupload_lfs_files(REPO, operations, gitignore_content="# nothing")
    assert [one._should_ignore for one in operations] == [False, False]


@pytest.mark.parametrize(
    ("rules", "path", "ignored"),
    [
        ("*.json", "deep/config.json", True),
        ("/*.json", "deep/config.json", False),
        ("*.json\n!config.json", "config.json", False),
        ("plots/", "plots/drift.svg", True),
        ("plots/", "plots", False),
        ("deep/*.svg", "deep/er/a.svg", False),
        ("deep/**", "deep/er/a.svg", True),
        ("**/a.svg", "a.svg", True),
        ("# *.json", "config.json", False),
        ("model?.bin", "model1.bin", True),
        ("", "config.json", False),
    ],
)
def test_gitignore_rules(rules: str, path: str, ignored: bool) -> None:
    """Rules cover what git's would."""
    assert IgnoreRules(rules).cover(path) is ignored


class TestFaults:
    """Each fault does what it says, once, and as often as it is told."""

    def test_status(self, hub: LoopbackHub, api: HfApi) -> None:
        """An error instead of the answer: tried again where the client does so, and nothing was done."""
        hub.fault("POST", "/preupload/", status(429, retry_after=1), times=2)
        hub.fault("POST", "/commit/main$", status(403, error_code="Ordered"))
        with pytest.raises(HfHubHTTPError, match="403") as refused:
            published(api)
        assert refused.value.response.headers["X-Error-Code"] == "Ordered"
        assert [path for _, path in hub.requests if "/preupload/" in path] == [
            "/api/models/org/model/preupload/main"
        ] * 3
        assert len(hub.commits(REPO)) == 1

    def test_for_ever(self, hub: LoopbackHub, api: HfApi) -> None:
        """A fault can outlast all that the client tries; cleared, all goes well."""
        hub.fault("PUT", "^/lfs/", status(500), times=10**9)
        with pytest.raises(RuntimeError):
            published(api)
        hub.clear_faults()
        api.create_commit(REPO, adds(FILES), commit_message="publish")
        assert hub.files(REPO)["model.safetensors"] == FILES["model.safetensors"]

    def test_drop(self, hub: LoopbackHub, api: HfApi) -> None:
        """The connection closes, and nothing was done."""
        hub.fault("POST", "/commit/main$", drop)
        with pytest.raises(httpx.HTTPError):
            published(api)
        assert len(hub.commits(REPO)) == 1

    def test_lose_response(self, hub: LoopbackHub, api: HfApi) -> None:
        """The connection closes, and it was done."""
        hub.fault("POST", "/commit/main$", lose_response)
        with pytest.raises(httpx.HTTPError):
            published(api)
        assert hub.commits(REPO)[0][1] == "publish"

    def test_truncate(self, hub: LoopbackHub, api: HfApi) -> None:
        """Half of the body comes, and it was done."""
        hub.fault("POST", "/commit/main$", truncate)
        with pytest.raises(httpx.RemoteProtocolError, match="closed connection"):
            published(api)
        assert hub.commits(REPO)[0][1] == "publish"

    def test_call(self, hub: LoopbackHub, api: HfApi) -> None:
        """Something else happens first: here, somebody else's commit."""
        hub.fault("POST", "/commit/main$", call(lambda hub: hub.push(REPO, {"notes.txt": b"theirs"})))
        published(api)
        assert [title for _, title in hub.commits(REPO)] == ["publish", "somebody else's commit", "initial commit"]

    def test_call_after(self, hub: LoopbackHub, api: HfApi) -> None:
        """Or when it is done, before that is answered."""
        seen: list[str] = []
        hub.fault("POST", "/commit/main$", call(lambda hub: seen.append(hub.commits(REPO)[0][1]), after=True))
        published(api)
        assert seen == ["publish"]


def test_this_process_talks_to_the_loopback_hub_only(hub: LoopbackHub) -> None:
    """A client without an endpoint of its own, as in a library under test, is at the loopback Hub too."""
    hub.push(REPO, FILES)
    assert HfApi().model_info(REPO).sha == hub.branches(REPO)["main"]
    assert get_token() == hub.token
