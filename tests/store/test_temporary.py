"""Temporary folders: deleted at the end, after a `kill -9` by the next process, and never while somebody uses them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from safe_dtype.store.temporary import TemporaryPlace, remove_left_behind, temporary_folder

USES = """
import sys, time
from pathlib import Path
from safe_dtype.store.temporary import TemporaryPlace
place = TemporaryPlace(".work-", beside=Path(sys.argv[1]))
(place.path / "weights").write_text("x" * 1000)
print(place.path, flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks that tell whose a folder is")


@contextmanager
def used(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder in `folder` that another process uses, which is killed at the end."""
    command = [sys.executable, "-c", USES, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip())
        process.kill()


def test_deleted_at_the_end(tmp_path: Path) -> None:
    """It is there inside, empty, and gone afterwards; also after an error."""
    with temporary_folder(".work-", beside=tmp_path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "x").write_text("")
        assert [one.name.startswith(".work-") for one in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), temporary_folder(".work-", beside=tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_left_by_a_kill(tmp_path: Path) -> None:
    """What a killed process left is deleted by the next that makes one there, whatever it makes."""
    with used(tmp_path) as left, temporary_folder(".other-", beside=tmp_path):
        assert (left / "weights").exists()  # somebody uses it
    assert (left / "weights").exists()
    with temporary_folder(".other-", beside=tmp_path):
        assert not left.parent.exists()
    assert list(tmp_path.iterdir()) == []


def test_own_is_kept(tmp_path: Path) -> None:
    """A process does not take its own folders for left ones."""
    first, second = (TemporaryPlace(".work-", beside=tmp_path) for _ in range(2))
    assert first.path.is_dir()
    for place in (first, second):
        place.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_users_folders_are_kept(tmp_path: Path) -> None:
    """Whatever has not our mark, or not our name, is nobody's business: nor is what a link leads to."""
    with used(tmp_path) as left:
        pass
    elsewhere = tmp_path / "models"
    shutil.copytree(left.parent, elsewhere / "my copy")
    shutil.copytree(left.parent, elsewhere / ".unmarked", ignore=shutil.ignore_patterns(".safe_dtype-owner"))
    (elsewhere / ".link").symlink_to(elsewhere / "my copy", target_is_directory=True)
    before = sorted(elsewhere.rglob("*"))
    remove_left_behind(elsewhere)
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_used_by_a_forked_process(tmp_path: Path) -> None:
    """A process that was forked with the folder still uses it when the first one is gone."""
    code = USES.replace(
        "time.sleep(600)", "import os; pid = os.fork(); print(pid, flush=True) if pid else time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left, forked = Path(process.stdout.readline().strip()), int(process.stdout.readline())
        assert process.wait(60) == 0
    try:
        remove_left_behind(tmp_path)
        assert left.exists()
    finally:
        os.kill(forked, signal.SIGKILL)
