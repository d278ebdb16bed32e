"""A model as it is loaded, beside the one that a test lays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from numerics.laid_out import load


@pytest.fixture
def plain(folder: Path) -> Any:
    """The model in the `folder` of a file of tests, as it is loaded."""
    return load(folder)
