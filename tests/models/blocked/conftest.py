"""A tiny model that multiplies in blocks, and the plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numerics.laid_out import load, save

from safe_dtype.models.block_layout import lay_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an OPT is saved, whose linear modules have biases."""
    return save("opt", tmp_path_factory.mktemp("opt"))


@pytest.fixture
def model(folder: Path) -> Any:
    """The same one, laid out."""
    model = load(folder)
    assert lay_out(model).modules == 7
    return model


@pytest.fixture
def tied(folder: Path) -> tuple[Any, Any]:
    """A model whose output head is tied to its embedding, laid out, and the plain one."""
    path = save("qwen3-tied", folder.parent / "tied")
    model, plain = load(path), load(path)
    assert lay_out(model).modules == 15
    return model, plain
