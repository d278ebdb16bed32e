"""A model that has its plan is not planned again: the mark is for one load, in one thread."""

from __future__ import annotations

import threading

import pytest

from safe_dtype.loading.planned_once import already_planned, take_planned


def test_nothing_is_marked() -> None:
    """Without a mark a model is to be planned."""
    assert take_planned() is False


def test_taken_once() -> None:
    """The mark is for the model that is loaded next; one that this loads on the way is planned."""
    with already_planned():
        assert take_planned() is True
        assert take_planned() is False
    assert take_planned() is False


def test_not_taken() -> None:
    """A mark that nobody took ends with the block, after an error too."""
    with already_planned():
        pass
    assert take_planned() is False
    with pytest.raises(ZeroDivisionError), already_planned():
        raise ZeroDivisionError
    assert take_planned() is False


def test_one_in_another() -> None:
    """After the inner block the outer mark is as it was before it: there, or taken."""
    with already_planned():
        with already_planned():
            assert take_planned() is True
        assert take_planned() is True
        with already_planned():
            pass
        assert take_planned() is False


def test_another_thread() -> None:
    """What another thread loads meanwhile is planned."""
    found: list[bool] = []
    with already_planned():
        thread = threading.Thread(target=lambda: found.append(take_planned()))
        thread.start()
        thread.join()
        assert found == [False]
        assert take_planned() is True
