"""A folder is what its files are, hidden ones included."""

from __future__ import annotations

from pathlib import Path

import pytest
from publishing.stages import written

from safe_dtype.errors import NotPublishableError
from safe_dtype.publishing.staging.manifest import manifest_of


def test_digests(tmp_path: Path) -> None:
    """Size, SHA-256, and the name that git gives."""
    digest = manifest_of(written(tmp_path, {"a/b.txt": b"hello\n"}))["a/b.txt"]
    assert digest.size == 6
    assert digest.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert digest.git == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_nothing_is_left_out(tmp_path: Path) -> None:
    """Hidden files and empty ones count, links inside of the folder too."""
    written(tmp_path, {".hidden": b"", "a.txt": b"a"})
    (tmp_path / "link.txt").symlink_to("a.txt")
    assert list(manifest_of(tmp_path)) == [".hidden", "a.txt", "link.txt"]


@pytest.mark.parametrize("name", ["a\nb", "a:b", "a ", "ü.txt", ".git", "a\\b", "a*"])
def test_names(tmp_path: Path, name: str) -> None:
    """A name that not every system can spell is refused."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(NotPublishableError, match="spell"):
        manifest_of(tmp_path)


def test_twins(tmp_path: Path) -> None:
    """Two names that differ in case only are one file elsewhere."""
    with pytest.raises(NotPublishableError, match=r"A\.txt and a\.txt"):
        manifest_of(written(tmp_path, {"a.txt": b"", "A.txt": b""}))


@pytest.mark.parametrize(("to", "reason"), [("../out.txt", "leaves"), ("nowhere", "nowhere"), ("folder", "a folder")])
def test_links(tmp_path: Path, to: str, reason: str) -> None:
    """Links that leave the folder, lead nowhere or to a folder are refused."""
    written(tmp_path, {"out.txt": b"", "stage/folder/a.txt": b""})
    (tmp_path / "stage/link").symlink_to(to)
    with pytest.raises(NotPublishableError, match=reason):
        manifest_of(tmp_path / "stage")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_files(tmp_path: Path, name: str) -> None:
    """There is something to publish."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotPublishableError, match=r"empty|no such"):
        manifest_of(tmp_path / name)


def test_progress(tmp_path: Path) -> None:
    """Hashing is told of in bytes, up to all of them."""
    heard: list[tuple[str, int, int]] = []
    manifest_of(written(tmp_path, {"a": b"1234", "b": b"56"}), progress=lambda *step: heard.append(step))
    assert heard[-1] == ("hash", 6, 6)
