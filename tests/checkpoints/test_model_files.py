"""The files of a checkpoint, in a folder or on the Hub, behind the same questions."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
from publishing.loopback import LoopbackHub, status

from safe_dtype.checkpoints.model_files import files_of
from safe_dtype.errors import CheckpointNotFoundError, CorruptCheckpointError
from safe_dtype.facts import Where

WEIGHTS = "model.safetensors"


def names_in(path: Path) -> set[str]:
    """Return the names of the tensors in a file, by safetensors itself."""
    with safetensors.safe_open(path, "pt") as opened:
        return set(opened.keys())


def test_in_a_folder(saved: Callable[..., Path]) -> None:
    """A folder's files are there or not, have no commit and no digest of the Hub, and their headers are read."""
    folder = saved()
    files = files_of(Where(folder))
    assert (files.commit, files.blob(WEIGHTS)) == (None, None)
    assert (files.has(WEIGHTS), files.on_disk(WEIGHTS), files.local(WEIGHTS)) == (
        True, folder / WEIGHTS, folder / WEIGHTS,
    )  # fmt: skip
    assert (files.has("nothing"), files.on_disk("nothing")) == (False, None)
    assert {one.name for one in files.header(WEIGHTS)} == names_in(folder / WEIGHTS)


def test_in_a_subfolder(saved: Callable[..., Path]) -> None:
    """Of a subfolder the files in it are meant; one that is not there is named."""
    folder = saved()
    assert files_of(Where(folder.parent, subfolder=folder.name)).on_disk(WEIGHTS) == folder / WEIGHTS
    with pytest.raises(CheckpointNotFoundError, match="has no subfolder 'nothing'"):
        files_of(Where(folder.parent, subfolder="nothing"))


def test_on_the_hub(hub: LoopbackHub, saved: Callable[..., Path]) -> None:
    """What is not in the cache is asked of the Hub: the header alone, the digest as listed; then the file is loaded."""
    wanted = (saved() / WEIGHTS).read_bytes()
    files = files_of(Where("org/model"))
    assert files.commit == hub.commits("org/model")[0][0]
    assert (files.has(WEIGHTS), files.on_disk(WEIGHTS)) == (True, None)
    assert not files.has("nothing")
    assert {one.name for one in files.header(WEIGHTS)} == names_in(saved() / WEIGHTS)
    digest = files.blob(WEIGHTS)
    assert files.on_disk(WEIGHTS) is None
    path = files.local(WEIGHTS)
    assert path.read_bytes() == wanted
    assert files.on_disk(WEIGHTS) == path
    assert files.blob(WEIGHTS) == digest == hashlib.sha256(wanted).hexdigest()


def test_a_subfolder_on_the_hub(hub: LoopbackHub) -> None:
    """In a repository a subfolder stands before the name."""
    hub.push("org/model", {"inner/config.json": b"{}"})
    inner = files_of(Where("org/model", subfolder="inner"))
    assert inner.has("config.json")
    assert not inner.has(WEIGHTS)
    assert inner.local("config.json").read_bytes() == b"{}"


def test_a_hub_that_does_not_answer(hub: LoopbackHub) -> None:
    """Where the Hub fails, and the cache knows the revision, that of the cache is read, as transformers does."""
    (first, _), *_ = hub.commits("org/model")
    files_of(Where("org/model")).local("config.json")
    hub.push("org/model", {"README.md": b"# Words\n"})
    hub.fault("*", "org/model", status(503), times=float("inf"))
    assert files_of(Where("org/model")).commit == first


@pytest.mark.parametrize("name", ["", "./org/model", "/org/model", "~/model", "org/model/", "a/b/c", "org\\model"])
def test_what_reads_like_a_folder(name: str) -> None:
    """A name that no repository can have is a folder that is not there; nothing is asked of the Hub."""
    with pytest.raises(CheckpointNotFoundError, match="no such file or folder"):
        files_of(Where(name))


def test_git_lfs_pointer(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Where Git LFS left a pointer, no file is read: not the config, not the weights."""
    folder = shutil.copytree(saved(), tmp_path / "model")
    for name in ("config.json", WEIGHTS):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 123\n")
        for read in (files_of(Where(folder)).local, files_of(Where(folder)).header):
            with pytest.raises(CorruptCheckpointError, match=rf"{name}: is a Git LFS pointer.*`git lfs pull`"):
                read(name)


def test_mistyped(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name like that of a folder which is there is told so, whether or not it could be a repository's."""
    folder = saved()
    monkeypatch.chdir(folder.parent.parent)
    words = f"there is no '{folder.name}x' in .*, but '{folder.name}'"
    with pytest.raises(CheckpointNotFoundError, match=f"no such file or folder: {words}"):
        files_of(Where(f"{folder}x"))
    with pytest.raises(CheckpointNotFoundError, match=rf"is no folder here \({words}\), and"):
        files_of(Where(f"{folder.parent.name}/{folder.name}x", local_files_only=True)).has(WEIGHTS)
