"""A Git LFS pointer is told from the file that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_dtype.errors import CorruptCheckpointError
from safe_dtype.store.git_lfs import is_pointer, pulled, require_pulled

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1234567\n"


def test_pointer(tmp_path: Path) -> None:
    """A pointer is named as one, with the size of the file it stands for and the command that downloads it."""
    path = tmp_path / "model.safetensors"
    path.write_text(POINTER)
    with pytest.raises(CorruptCheckpointError) as caught:
        pulled(path)
    assert (
        str(caught.value) == f"{path}: is a Git LFS pointer: the file's 1,234,567 bytes were never downloaded. "
        f"Next: run `git lfs pull` in {tmp_path}."
    )


@pytest.mark.parametrize("content", [b"", b"version", b"{}", POINTER.encode() + b" " * 1024])
def test_file(content: bytes, tmp_path: Path) -> None:
    """Any other file is itself, also one that begins as a pointer and is too long for one."""
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not is_pointer(path)
    assert pulled(path) == path


def test_folder(tmp_path: Path) -> None:
    """A folder is checked file by file; one that is not there has no pointers."""
    require_pulled(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    require_pulled(tmp_path)
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with pytest.raises(CorruptCheckpointError, match=r"tokenizer\.json: is a Git LFS pointer"):
        require_pulled(tmp_path)
