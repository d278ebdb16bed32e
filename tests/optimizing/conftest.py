"""What several tests of loaded optimizations start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from optimizing.form_models import Mlp
from optimizing.made import optimized


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is made here be noted apart from the user's cache."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mlp(own_cache: None, tmp_path: Path) -> Path:
    """The folder of an exported Mlp, batch 1 to 8."""
    optimized(Mlp(), tmp_path / "mlp", "export")
    return tmp_path / "mlp"
