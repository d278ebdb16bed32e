"""A lock that tells whether a file's process lives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from safe_dtype.store.owner_lock import try_lock


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_one_at_a_time(tmp_path: Path) -> None:
    """One has it, until the file is closed."""
    path = tmp_path / "file"
    with path.open("w") as first, path.open() as second:
        assert try_lock(first.fileno())
        assert not try_lock(second.fileno())
        first.close()
        assert try_lock(second.fileno())


def test_no_file(tmp_path: Path) -> None:
    """Of what cannot be locked nothing is known."""
    with (tmp_path / "file").open("w") as file:
        number = file.fileno()
    assert not try_lock(number)
