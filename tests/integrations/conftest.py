"""A machine on which pip finds nothing, a model for every quantizer, and pipelines of diffusers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from quantized_models import tiny_qwen3


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip find nothing at all; return the folder where environments go."""
    for name in [one for one in os.environ if one.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "environments"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in bfloat16, of widths that every quantizer takes."""
    return tiny_qwen3(tmp_path_factory.mktemp("quantizable") / "model")


@pytest.fixture(scope="session")
def saved_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what saves a pipeline of that name, its weights in bfloat16, once."""
    from tiny_pipelines import save_pipeline

    folders: dict[tuple[str, torch.dtype], Path] = {}

    def save(name: str, dtype: torch.dtype = torch.bfloat16) -> Path:
        if (name, dtype) not in folders:
            folders[name, dtype] = save_pipeline(name, tmp_path_factory.mktemp(name), dtype)
        return folders[name, dtype]

    return save
