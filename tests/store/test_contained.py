"""A path stays in its folder, whatever system reads it and whatever links there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_dtype.store.contained import is_relative, leads_out


@pytest.mark.parametrize("path", ["a", "a/b.safetensors", "a/..b", ""])
def test_relative(path: str) -> None:
    """A plain path below the folder."""
    assert is_relative(path)


@pytest.mark.parametrize(
    "path", ["/a", "../a", "a/../../b", "C:\\a", "C:a", "a\\..\\..\\b", "\\\\host\\share\\a", "a\0"]
)
def test_not_relative(path: str) -> None:
    """Absolute, or climbing, in the notation of any system."""
    assert not is_relative(path)


@pytest.mark.parametrize(
    ("link", "target", "leads"),
    [
        pytest.param("folder/a", "folder/file", False, id="inside"),
        pytest.param("folder/a", "file", True, id="outside"),
        pytest.param("folder/a", "folder-2/file", True, id="a-name-that-begins-alike"),
        pytest.param("folder/a", "none", True, id="dangling"),
    ],
)
def test_links(link: str, target: str, leads: bool, tmp_path: Path) -> None:
    """A link is judged by where it ends."""
    (tmp_path / "folder").mkdir()
    (tmp_path / link).symlink_to(tmp_path / target)
    assert leads_out(tmp_path / "folder", "a") is leads


def test_folder_over_links(tmp_path: Path) -> None:
    """A folder that is itself a link, or lies below one, holds its files all the same."""
    (tmp_path / "real/folder").mkdir(parents=True)
    (tmp_path / "above").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real/folder")
    assert not leads_out(tmp_path / "above/folder", "a")
    assert not leads_out(tmp_path / "link", "a")


def test_over_a_linked_folder(tmp_path: Path) -> None:
    """A path that passes over a link to a folder outside leads out as well."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "folder/sub").symlink_to(tmp_path / "other")
    assert leads_out(tmp_path / "folder", "sub/a")


@pytest.mark.parametrize(
    ("cache", "blobs", "leads"),
    [
        pytest.param("models--org--m", "models--org--m/blobs", False, id="own-blobs"),
        pytest.param("models--org--m", "models--org--other/blobs", True, id="blobs-of-another-repository"),
        pytest.param("backups", "backups/blobs", True, id="no-cache-of-the-hub"),
        pytest.param("models--org--m", "models--org--m/blobs/deeper", True, id="below-the-blobs"),
    ],
)
def test_snapshots(cache: str, blobs: str, leads: bool, tmp_path: Path) -> None:
    """A snapshot of the Hub's cache may link to its own blobs, and to nothing else."""
    snapshot = tmp_path / cache / "snapshots/abc"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "sub/a").symlink_to(tmp_path / blobs / "0")
    assert leads_out(snapshot, "sub/a") is leads
    assert leads_out(snapshot / "sub", "a") is leads
