"""Functions that several watch at once, who begin and end in any order."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import SimpleNamespace

import pytest

from safe_dtype.training.mistakes.watched_function import WatchedFunction


def test_whoever_ends_first() -> None:
    """Who has begun first may end first: each sees the calls of its own block, and nothing stays behind."""
    owner = SimpleNamespace(double=lambda number: 2 * number)
    original, watched = owner.double, WatchedFunction(owner, "double")
    seen: list[tuple[str, int]] = []

    def noting(name: str) -> AbstractContextManager[None]:
        return watched.watched_by(lambda number: seen.append((name, number)))

    first, second = noting("first"), noting("second")
    first.__enter__()
    second.__enter__()
    assert owner.double(1) == 2
    first.__exit__(None, None, None)
    assert owner.double(2) == 4
    second.__exit__(None, None, None)
    assert owner.double(3) == 6
    assert seen == [("first", 1), ("second", 1), ("second", 2)]
    assert owner.double is original


def test_an_error_of_a_watcher() -> None:
    """It comes out of the call, and the function is itself again behind the block."""
    owner = SimpleNamespace(double=lambda number: 2 * number)
    original, watched = owner.double, WatchedFunction(owner, "double")

    def refuse(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(ValueError, match="1"), watched.watched_by(refuse):
        owner.double(1)
    assert owner.double is original
