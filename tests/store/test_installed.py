"""Versions of packages that are installed, read without importing them."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.store.installed import installed_version


@pytest.mark.parametrize("names", [("torch",), ("no-such-package-of-ours", "torch")], ids=["one", "the-second"])
def test_the_first_that_is_installed(names: tuple[str, ...]) -> None:
    """Of several names that bring the same module the first that is here counts."""
    assert installed_version(*names) == str(torch.__version__)


def test_none_is_installed() -> None:
    """Where none is here there is no version, and no error."""
    assert installed_version("no-such-package-of-ours") is None
    assert installed_version() is None
