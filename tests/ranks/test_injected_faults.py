"""Faults injected into jobs of ranks: each ends as it has to, on every rank, and no step is lost or made twice.

What has to come out is said by `faults.expected`, which knows the ladder and nothing of the guard, and by a run in plain
torch, without a guard and without faults, that computes each step in the dtype in which the guarded run has to make it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .ddp_trial import random_trials, systematic_trials
from .faults import InjectedFault, expected
from .processes import Launch, run_ranks

Trials = Callable[..., list[tuple[str, str, list[str], int]]]


def check(trials: Trials, size: int, *arguments: Any, seconds: float) -> int:
    """Run trials as `size` ranks; return how many there were, all of them as due and with faults that showed."""
    cases = list(zip(*run_ranks(trials, size, *arguments, launch=Launch(seconds=seconds)), strict=True))
    wrong = {
        ranks[0][0]: [differences for _, _, differences, _ in ranks]
        for ranks in cases
        if any(differences for _, _, differences, _ in ranks)
        or len({digest for _, digest, _, _ in ranks}) > 1
        or not any(fired for _, _, _, fired in ranks)
    }
    assert not wrong
    return len(cases)


def test_sixty_faults() -> None:
    """On 2 ranks under DistributedDataParallel: every kind, place and step, with engines in turn."""
    assert check(random_trials, 2, 17, 60, seconds=100) == 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "seed", "count"), [(2, 1, 100), (2, 2, 100), (3, 3, 60), (4, 4, 40)], ids=lambda value: str(value)
)
def test_random_faults(size: int, seed: int, count: int) -> None:
    """So it is with those that are drawn at random, several in one run among them, on 2 to 4 ranks."""
    assert check(random_trials, size, seed, count, seconds=170) == count


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_systematic_faults(size: int) -> None:
    """Each kind in forward and in backward of each rank at each step."""
    assert check(systematic_trials, size, seconds=170) > 50


@pytest.mark.parametrize(
    ("faults", "dtypes", "ending"),
    [
        pytest.param([("exception", 0, 1)], "bff", "done", id="down-from-there-on"),
        pytest.param([("exception", 0, 2)], "bb-", "done", id="as-far-as-it-fails"),
        pytest.param([("exception", 0, 3)], "", "no dtype left", id="nothing-below"),
        pytest.param([("nan", 0, 1), ("foreign", 1, 1)], "", "foreign", id="the-worst-of-all-ranks"),
    ],
)
def test_what_is_expected(faults: list[tuple[str, int, int]], dtypes: str, ending: str) -> None:
    """The oracle by itself."""
    ladder = ("bfloat16", "float16", "float32")
    step = {"bff": 1, "bb-": 2}.get(dtypes, 0)
    injected = [InjectedFault(rank, step, 0, 0, "forward", kind, 0, ladder[:count]) for kind, rank, count in faults]
    outcome = expected(injected, 3)
    names = {"b": "bfloat16", "f": "float16", "-": "float32"}
    assert (outcome.dtypes, outcome.ending) == (tuple(names[letter] for letter in dtypes), ending)
