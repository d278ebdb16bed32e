"""A machine on which pip finds nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip find nothing at all; return the folder where environments go."""
    for name in [one for one in os.environ if one.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "environments"
