"""Products of parameters, of which the default run has a part: every pair of values that two of them can have."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*axes: Iterable[Any], fewer: Mapping[int, Container[Any]] | None = None) -> list[Any]:
    """Return the product of `axes` as parameters; those that add no new pair of values are slow.

    A fault that takes one value, or two together, is found in the default run; one that takes three is in the slow.

    Args:
        axes: The values of each.
        fewer: By the number of an axis, the values of it that the default run has, where the others have tests there too.
    """
    cases = list(product(*(list(axis) for axis in axes)))
    usual = [case for case in cases if all(case[axis] in values for axis, values in (fewer or {}).items())]
    chosen = _chosen(usual)
    return [pytest.param(*case, marks=() if case in chosen else pytest.mark.slow) for case in cases]


def pairs(case: tuple[Any, ...]) -> set[Any]:
    """Return the pairs of values that stand together in `case`, each value with the place of its axis."""
    return set(combinations(enumerate(case), 2))


def _chosen(cases: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Return as few cases as greed finds, in which every pair stands."""
    missing = set().union(*map(pairs, cases))
    chosen = set()
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))  # the first of equals: the same in every run
        chosen.add(best)
        missing -= pairs(best)
    return chosen
