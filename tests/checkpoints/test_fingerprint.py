"""What tells one checkpoint from another, and what makes no difference."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from publishing.loopback import LoopbackHub

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.checkpoints.fingerprint import fingerprint, identity_of
from safe_dtype.checkpoints.model_files import files_of
from safe_dtype.facts import CheckpointIdentity, TensorFacts, Where


def key_of(**where: str) -> str:
    """Return the digest under which results of the repository are remembered."""
    place = Where("org/model", **where)
    return fingerprint(read_checkpoint(place), place)


def test_key(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is the same whatever the commit was called; offline it is that of the commit in the cache."""
    (first, _), *_ = hub.commits("org/model")
    before = key_of()
    assert key_of(revision="main") == key_of(revision=first) == before
    second = hub.push("org/model", {"README.md": b"# Words\n"})
    assert key_of() == key_of(revision=second) != before
    hub.push("org/model", {"README.md": b"# Other words\n"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert files_of(Where("org/model")).commit == second


def key_in(folder: Path) -> str:
    """Return the digest under which results of a local checkpoint are remembered."""
    return fingerprint(read_checkpoint(folder), Where(folder))


def test_a_copy_has_the_same_key(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Neither the place nor the files beside the weights count."""
    copy = Path(shutil.copytree(saved(), tmp_path / "copy"))
    (copy / "README.md").write_text("# Words")
    assert key_in(copy) == key_in(saved())


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_other_byte(saved: Callable[..., Path], tmp_path: Path, place: str) -> None:
    """Of a small file every byte counts."""
    copy = Path(shutil.copytree(saved(), tmp_path / "copy"))
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")  # of the numbers
    number = {"first": first, "middle": (first + len(content)) // 2, "last": len(content) - 1}[place]
    content[number] ^= 1
    path.write_bytes(content)
    assert key_in(copy) != key_in(saved())


def test_another_architecture(saved: Callable[..., Path]) -> None:
    """The same weights in another class are another checkpoint."""
    checkpoint = read_checkpoint(saved())
    other = replace(checkpoint, architecture="Qwen3ForSequenceClassification")
    assert fingerprint(other, Where(saved())) != fingerprint(checkpoint, Where(saved()))


def test_a_subfolder(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Of a subfolder its own files are read."""
    shutil.copytree(saved(), tmp_path / "inner")
    where = Where(tmp_path, subfolder="inner")
    assert fingerprint(read_checkpoint(where), where) == key_in(saved())


WEIGHT = TensorFacts("weight", "float32", (2, 3), "a.safetensors")
BIAS = TensorFacts("bias", "float32", (2,), "a.safetensors")


def written(folder: Path, name: str, *sizes: int) -> Path:
    """Return a file with a tensor of each size."""
    path = folder / name
    safetensors.torch.save_file({str(place): torch.zeros(size) for place, size in enumerate(sizes)}, path)
    return path


def test_identity_of_tensors() -> None:
    """Names, dtypes and shapes count; the order of the tensors and the file that each is in do not."""
    digest = identity_of([WEIGHT, BIAS], []).tensors
    assert identity_of([replace(BIAS, file="b.safetensors"), WEIGHT], []).tensors == digest
    for other in (replace(BIAS, name="b"), replace(BIAS, dtype="float16"), replace(BIAS, shape=(3,))):
        assert identity_of([WEIGHT, other], []).tensors != digest


def test_identity_of_contents(tmp_path: Path) -> None:
    """The contents are those of all files in order; without one of them nothing is known of them."""
    first, second = written(tmp_path, "a.safetensors", 3), written(tmp_path, "b.safetensors", 4)
    both = identity_of([], [first, second]).contents
    assert both is not None
    assert identity_of([], [Path(shutil.copy(first, tmp_path / "c")), second]).contents == both
    assert both not in (identity_of([], [second, first]).contents, identity_of([], [first]).contents)
    assert identity_of([], [first, None]).contents is None
    assert identity_of([], []).contents is None


def test_identity_of_blobs() -> None:
    """Likewise the Hub's digests; the commit is as it was given."""
    both = identity_of([], [], blobs=["a", "b"], commit="c0ffee")
    assert both == identity_of([], [], blobs=["a", "b"], commit="c0ffee")
    assert both.commit == "c0ffee"
    assert both.blobs not in (None, identity_of([], [], blobs=["b", "a"]).blobs)
    assert identity_of([], [], blobs=["a", None]).blobs is None
    assert isinstance(both, CheckpointIdentity)


def test_sampled_not_read_whole(tmp_path: Path) -> None:
    """Of a large file the size, both ends and places between count, and not every byte."""
    path, digests = tmp_path / "large", []
    size, sample = 64 * 2**20, 64 * 2**10
    between = (size - sample) // 15 * 3  # the start of a sample
    for place in (None, 0, size - 1, between, sample + 1000):
        with path.open("wb") as opened:
            opened.truncate(size)
            if place is not None:
                opened.seek(place)
                opened.write(b"x")
        digests.append(identity_of([], [path]).contents)
    plain, first, last, sampled, aside = digests
    assert len({plain, first, last, sampled}) == 4
    assert aside == plain
    with path.open("r+b") as opened:
        opened.truncate(size + 1)
    assert identity_of([], [path]).contents != plain
