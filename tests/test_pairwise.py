"""The default run's part of a product has every pair of values, and little more."""

from __future__ import annotations

import pytest
from pairwise import pairs, pairwise

AXES = (tuple("abcdefgh"), (0, 1, 5, 11), ("nan", "inf", "mismatch"))


def test_every_pair_is_in_the_default_run() -> None:
    """No two values of two axes are left out, in about as many cases as the two longest axes alone have."""
    default = [case.values for case in pairwise(*AXES) if pytest.mark.slow not in case.marks]
    in_default = set().union(*map(pairs, default))
    assert in_default == set().union(*(pairs(case.values) for case in pairwise(*AXES)))
    assert 8 * 4 <= len(default) <= 8 * 4 + 4


def test_the_product_is_whole() -> None:
    """With the slow ones every case stands there once, in the order of the axes."""
    assert [case.values for case in pairwise(*AXES)] == [(a, b, c) for a in AXES[0] for b in AXES[1] for c in AXES[2]]


def test_one_axis_is_whole_in_the_default_run() -> None:
    """Two axes, or fewer, are all pairs already."""
    assert not any(case.marks for case in pairwise("ab", (1, 2, 3)))


def test_fewer_values_of_an_axis() -> None:
    """Of the axis that is named the default run has these values alone, and still every pair of what is left."""
    cases = pairwise(*AXES, fewer={1: (0, 5)})
    default = [case.values for case in cases if pytest.mark.slow not in case.marks]
    assert {case[1] for case in default} == {0, 5}
    left = [case.values for case in pairwise(AXES[0], (0, 5), AXES[2])]
    assert set().union(*map(pairs, default)) == set().union(*map(pairs, left))
    assert [case.values for case in cases] == [case.values for case in pairwise(*AXES)]
