"""Hashes of files: as hashlib gives them for the whole, with every byte told once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from safe_dtype.store.hashing import blocks_of, read_all, sha256_of

MEBIBYTE = 2**20
SIZES = {"empty": 0, "one": 1, "a-block": MEBIBYTE, "more": MEBIBYTE + 1, "blocks": 3 * MEBIBYTE + 5}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file of each size, its bytes all over the range and different in every block."""
    folder = tmp_path_factory.mktemp("files")
    paths = {}
    for name, size in SIZES.items():
        paths[name] = folder / name
        paths[name].write_bytes(b"".join(number.to_bytes(4, "little") for number in range(size // 4 + 1))[:size])
    return paths


@pytest.mark.parametrize("name", SIZES)
def test_sha256(files: dict[str, Path], name: str) -> None:
    """The digest is that of all bytes together."""
    assert sha256_of(files[name]) == hashlib.sha256(files[name].read_bytes()).hexdigest()


@pytest.mark.parametrize("name", SIZES)
def test_blocks(files: dict[str, Path], name: str) -> None:
    """The blocks are the file in order, none empty nor larger than a mebibyte; each is told after it was used."""
    told: list[int] = []
    blocks = []
    for block in blocks_of(files[name], told.append):
        assert len(told) == len(blocks)
        blocks.append(block)
    assert b"".join(blocks) == files[name].read_bytes()
    assert told == [len(block) for block in blocks]
    assert all(0 < size <= MEBIBYTE for size in told)


def test_all(files: dict[str, Path]) -> None:
    """Every file has its own digest under its own name, in the order in which they were given."""
    digests = read_all(files, sha256_of)
    assert list(digests) == list(files)
    assert digests == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert read_all({}, sha256_of) == {}


def test_progress(files: dict[str, Path]) -> None:
    """What was read grows block by block, whichever file it is of, and ends at all there is."""
    told: list[tuple[int, int]] = []
    total = sum(SIZES.values())
    read_all(files, sha256_of, progress=lambda done, whole: told.append((done, whole)))
    done = [one for one, _ in told]
    assert done == sorted(set(done))
    assert len(told) == sum(-(-size // MEBIBYTE) for size in SIZES.values())
    assert told[-1] == (total, total)
    assert {whole for _, whole in told} == {total}


def test_a_file_that_is_not_there(files: dict[str, Path], tmp_path: Path) -> None:
    """One that cannot be read is an error, and so is one that fails on the way."""
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_all(files | {"nothing": tmp_path / "nothing"}, sha256_of)
    with pytest.raises(IsADirectoryError):
        read_all({"folder": tmp_path}, sha256_of)
