"""What is told of progress, and who hears it."""

from __future__ import annotations

import threading

import pytest

from safe_dtype.rendering.progress import listening, part, tell


def test_nobody_listens() -> None:
    """Without a listener nothing happens, and after one nothing is heard any more."""
    heard: list[tuple[str, float]] = []
    tell("before", 1, 2)
    with listening(lambda what, share: heard.append((what, share))):
        tell("inside", 1, 2)
        tell("of nothing", 0, 0)
        thread = threading.Thread(target=tell, args=("elsewhere", 1, 2))
        thread.start()
        thread.join()
    tell("after", 1, 2)
    with part("alone", 0, 2):
        tell("alone", 1, 2)
    assert heard == [("inside", 0.5)]


def test_parts_of_a_whole() -> None:
    """What is told in a part counts as much as the part, under the part's name, however deep."""
    heard: list[tuple[str, float]] = []
    with listening(lambda what, share: heard.append((what, share))):
        with part("first", 0, 2):
            tell("batch", 1, 4)
            with part("inner", 1, 2):
                tell("batch", 1, 2)
        with part("second", 1, 2):
            pass
    assert heard == [
        ("first", 0.0), ("first", 0.125), ("first", 0.25), ("first", 0.375), ("first", 0.5), ("first", 0.5),
        ("second", 0.5), ("second", 1.0),
    ]  # fmt: skip
    assert [share for _, share in heard] == sorted(share for _, share in heard)


def test_a_part_that_fails() -> None:
    """A part that fails is not told to be done."""
    heard: list[float] = []
    with listening(lambda _, share: heard.append(share)), pytest.raises(KeyError), part("first", 0, 2):
        raise KeyError
    assert heard == [0.0]
