"""What several tests of loaded optimizations start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import run_forked
from optimizing.form_models import Mlp
from optimizing.made import optimized

from safe_dtype.processes import child


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is made here be noted apart from the user's cache."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mlp(own_cache: None, tmp_path: Path) -> Path:
    """The folder of an exported Mlp, batch 1 to 8."""
    optimized(Mlp(), tmp_path / "mlp", "export")
    return tmp_path / "mlp"


@pytest.fixture
def forked_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attempts and diagnoses begin as a copy of a process that has imported torch."""
    monkeypatch.setattr(child, "run", run_forked)
