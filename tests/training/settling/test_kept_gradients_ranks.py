"""Gradients that one window leaves for the next, on several ranks: no bit differs from a run by hand, whatever fails on one."""

from __future__ import annotations

import pytest
from ranks.processes import Launch, run_ranks
from training.settling.kept_gradients_ranks import ENGINES, WAYS, all_differences


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_no_bit_differs(engine: str) -> None:
    """Kept for a second optimizer, clipped, never zeroed, dropped, zeroed in place: with a step down in either window of two."""
    assert run_ranks(all_differences, 2, engine, list(WAYS), launch=Launch(seconds=170)) == [[], []]
