"""What a publication would change is known before it is made, and what must not be published is refused."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, status
from publishing.stages import REPO, hurried, safetensors, sharded, whole, written

from safe_dtype.errors import NotPublishableError, PublishError
from safe_dtype.publishing.pushing.changes import changes_text, diff
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import Target

TARGET = Target(REPO, public=True)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder."""
    return written(tmp_path / "stage", sharded())


def test_a_new_repository(hub: LoopbackHub, stage: Path) -> None:
    """Everything is added, and nothing is done."""
    found = diff(stage, TARGET, api=hurried(hub))
    assert (found.creates_repo, found.head, set(found.add)) == (True, None, set(sharded()))
    assert found.bytes == sum(map(len, sharded().values()))
    assert hub.repositories == {}


def test_an_existing_repository(hub: LoopbackHub, stage: Path) -> None:
    """What is added, updated, deleted and there already is told apart, on the commit it was planned on."""
    shared = {"plots/drift.svg": sharded()["plots/drift.svg"]}
    head = hub.push(REPO, {**whole(), **shared, "notes.txt": b"theirs", "pytorch_model.bin.index.json": b"{}"})
    found = diff(stage, TARGET, api=hurried(hub))
    assert found.head == head
    assert found.update == ("README.md", "config.json")
    assert found.keep == ("plots/drift.svg",)
    assert found.delete == ("model.safetensors", "pytorch_model.bin.index.json")
    assert {*found.add, *found.update, *found.keep} == set(sharded())
    assert [method for method, _ in hub.requests] == ["GET"] * len(hub.requests)


def test_a_folder_without_weights(hub: LoopbackHub, tmp_path: Path) -> None:
    """Weights go only where others come."""
    hub.push(REPO, whole())
    assert diff(written(tmp_path / "plots", {"drift.svg": b"<svg/>"}), TARGET, api=hurried(hub)).delete == ()


def test_nothing_to_do(hub: LoopbackHub, stage: Path) -> None:
    """What is published already changes nothing."""
    push(stage, TARGET, api=hurried(hub))
    assert diff(stage, TARGET, api=hurried(hub)).empty


def test_for_people_and_for_programs(hub: LoopbackHub, stage: Path) -> None:
    """The text has a line for every file, the JSON every fact."""
    hub.push(REPO, whole())
    found = diff(stage, TARGET, api=hurried(hub))
    text = changes_text(found).splitlines()
    assert text[0].startswith(f"{REPO}, at {str(found.head)[:12]}, public")
    assert {"  ~ config.json", "  - model.safetensors", "  + safe_dtype.json"} <= set(text)
    assert text[-1] == f"5 added, 2 updated, 1 deleted, 0 there already; {found.bytes:,} bytes to send."
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["delete"], told["target"]["repo"], told["empty"]) == (["model.safetensors"], REPO, False)


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model.safetensors.index.fp16.json",
        "pytorch_model.bf16.bin",
    ],
)
@pytest.mark.parametrize("there", [False, True], ids=["in-the-folder", "in-the-repository"])
def test_variants_beside_one_config(hub: LoopbackHub, tmp_path: Path, name: str, there: bool) -> None:
    """Weights of two dtypes share one config.json, and transformers casts both to its dtype: refused, with the reason."""
    variant = {name: safetensors("F16", "w")}
    if there:
        hub.push(REPO, variant)
    stage = written(tmp_path / "stage", sharded() if there else sharded() | variant)
    with pytest.raises(NotPublishableError, match=r"one config\.json"):
        diff(stage, TARGET, api=hurried(hub))


def test_evidence_that_is_none(hub: LoopbackHub, stage: Path) -> None:
    """Only what a readable list names is taken for ours."""
    hub.push(REPO, {"safe_dtype.json": b"[1]", "notes.txt": b"theirs"})
    assert diff(stage, TARGET, api=hurried(hub)).delete == ()


def test_what_somebody_changed_since_is_theirs(hub: LoopbackHub, stage: Path) -> None:
    """A file that an earlier publication brought goes where it is still that file, and stays where somebody wrote it."""
    earlier = {
        "vocab.txt": b"a b",
        "LICENSE": b"as it was",
        "onnx/model.onnx": b"graph",
        "old.safetensors": b"weights",
    }
    listed = {path: {"size": len(one), "sha256": sha256(one).hexdigest()} for path, one in earlier.items()}
    evidence = json.dumps({"schema": "safe_dtype.variant/1", "files": listed}).encode()
    changed = {"LICENSE": b"as it is!", "onnx/model.onnx": b"GRAPH"}
    hub.push(REPO, {**earlier, **changed, "safe_dtype.json": evidence})
    assert diff(stage, TARGET, api=hurried(hub)).delete == ("old.safetensors", "vocab.txt")
    hub.push(REPO, {"safe_dtype.json": json.dumps({"files": dict.fromkeys(earlier, "odd")}).encode()})
    assert diff(stage, TARGET, api=hurried(hub)).delete == ()


@pytest.mark.parametrize("repo", ["model", "org/", "a/b/c", "org/mo del", ""])
def test_names_of_repositories(hub: LoopbackHub, stage: Path, repo: str) -> None:
    """A repository is named org/name; anything else is refused before the Hub is asked."""
    with pytest.raises(NotPublishableError, match="org/name"):
        diff(stage, Target(repo), api=hurried(hub))
    assert hub.requests == []


def test_a_hub_that_is_down(hub: LoopbackHub, stage: Path) -> None:
    """The error says what was asked, and that nothing was sent."""
    hub.fault("GET", "", status(503), times=10**9)
    with pytest.raises(PublishError, match=r"503 .*\[not-started\]"):
        diff(stage, TARGET, api=hurried(hub))
