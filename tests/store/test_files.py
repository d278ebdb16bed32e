"""Files that are written whole: never a part of one, nothing left behind, permissions as for any file."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safe_dtype.store import write_whole
from safe_dtype.store.owner_lock import try_lock

TEXTS = [str(number) * 100_000 for number in range(8)]


def test_written(tmp_path: Path) -> None:
    """The text is there, in UTF-8 and with its own line ends, and nothing beside it."""
    write_whole(tmp_path / "a.json", "ä\n")
    assert (tmp_path / "a.json").read_bytes().splitlines() == ["ä".encode()]
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_many_threads(tmp_path: Path) -> None:
    """Of many that write the same file at once one wins, whole."""
    file = tmp_path / "a.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_whole(file, text), TEXTS * 4))
    assert file.read_text(encoding="utf-8") in TEXTS
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """Where it cannot be written, what was there stays, and nothing is left beside it."""
    (tmp_path / "a.json").mkdir()  # no file takes the place of a folder
    with pytest.raises(OSError, match=r"a\.json"):
        write_whole(tmp_path / "a.json", "text")
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "b.json", "\ud800")
    assert (tmp_path / "b.json").read_text() == "before"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.json", "b.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_permissions(tmp_path: Path) -> None:
    """Whoever may read a file that is written plainly may read this one: an output folder is shared."""
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="no locks that tell whose a file is")
def test_what_a_killed_process_left(tmp_path: Path) -> None:
    """What a process left that was killed while it wrote is deleted by the next write; what is being written stays, and a user's files."""
    left, written, young = (tmp_path / f".values.json.{name}.part" for name in ("0a1b2c3d", "4e5f6071", "8293a4b5"))
    users = [tmp_path / f".values.json.{name}.part" for name in ("download", "0a1b2c3d.0a1b2c3d", "0A1B2C3D")]
    for part in (left, written, young, *users):
        part.write_text("half")
    for part in (left, written, *users):
        os.utime(part, (0, 0))
    with written.open() as busy:
        assert try_lock(busy.fileno())
        write_whole(tmp_path / "values.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {
        "values.json", written.name, young.name, *(part.name for part in users),
    }  # fmt: skip
