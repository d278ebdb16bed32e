"""The fewest of several things that are still enough."""

from __future__ import annotations

import math

import pytest

from safe_dtype.loading.trials.minimal_islands import Names, fewest

EIGHT = tuple("abcdefgh")


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        pytest.param((), "", id="nothing-to-leave-out"),
        pytest.param(("a",), "", id="the-only-one-is-not-needed"),
        pytest.param(("a",), "a", id="the-only-one-is-needed"),
        pytest.param(EIGHT, "", id="none-is-needed"),
        pytest.param(EIGHT, "abcdefgh", id="all-are-needed"),
        pytest.param(EIGHT, "a", id="the-first"),
        pytest.param(EIGHT, "h", id="the-last"),
        pytest.param(EIGHT, "de", id="beside-each-other-across-the-middle"),
        pytest.param(EIGHT, "bdfh", id="every-second"),
        pytest.param(tuple("abcde"), "bd", id="an-odd-count"),
    ],
)
def test_what_is_needed_is_left(names: Names, needed: str) -> None:
    """Exactly what is needed is left, in its order, with at most two questions for each name."""
    asked: list[Names] = []

    def does(kept: Names) -> bool:
        asked.append(kept)
        return set(needed) <= set(kept)

    assert fewest(names, does) == tuple(needed)
    assert len(asked) <= 2 * len(names)


def test_any_one_of_a_pair() -> None:
    """Where one of two does as well as the other, one is left."""
    assert len(fewest(EIGHT, lambda kept: bool({"c", "f"} & set(kept)))) == 1


@pytest.mark.parametrize("where", [0, 37, 63])
def test_few_questions_where_few_are_needed(where: int) -> None:
    """One of 64 is found with 2 log2(64) questions."""
    names = tuple(map(str, range(64)))
    asked: list[Names] = []

    def does(kept: Names) -> bool:
        asked.append(kept)
        return names[where] in kept

    assert fewest(names, does) == (names[where],)
    assert len(asked) <= 2 * math.log2(64) + 1


def test_none_can_be_left_out() -> None:
    """Of what is left no name alone can be left out, also where names only do together."""

    def does(kept: Names) -> bool:
        return {"a", "b"} <= set(kept) or {"c", "g", "h"} <= set(kept)

    found = fewest(EIGHT, does)
    assert does(found)
    assert not any(does(tuple(one for one in found if one != name)) for name in found)
