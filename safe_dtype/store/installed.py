"""Versions of packages that are installed here, by their names on an index. None of them is imported."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def installed_version(*names: str) -> str | None:
    """Return the version of the first of `names` that is installed; None where none is."""
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return None
