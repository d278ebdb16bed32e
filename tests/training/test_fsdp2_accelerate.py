"""FSDP2 as accelerate prepares it, on two ranks of which one fails: both make the step again, and go on as if switched by hand."""

from __future__ import annotations

import pytest
from ranks.processes import Launch, run_ranks
from training.fsdp2_runs import FAILURES, differences


@pytest.mark.parametrize("way", ["loop", "trainer"])
def test_no_step_is_lost(way: str) -> None:
    """No weight, moment, loss, rate or random number differs by a bit, whatever fails, in a loop and in the Trainer."""
    first, second = run_ranks(differences, 2, way, launch=Launch(seconds=170))
    assert first == second == {case.name: "" for case, _ in FAILURES}
