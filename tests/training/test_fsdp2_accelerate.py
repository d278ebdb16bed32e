"""FSDP2 as accelerate prepares it, on two ranks of which one fails: both make the step again, and go on as if switched by hand."""

from __future__ import annotations

import pytest
from ranks.processes import Launch, run_ranks
from training.fsdp2_runs import FAILURES, differences

NAMES = [case.name for case, _ in FAILURES]


@pytest.mark.needs("torch>=2.13")  # FSDP2 of torch 2.6 has its precision built in
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({"loop": ["both dtypes"], "trainer": ["backward"]}, id="one-each"),
        pytest.param({"loop": NAMES, "trainer": NAMES}, id="all", marks=pytest.mark.slow),
    ],
)
def test_no_step_is_lost(chosen: dict[str, list[str]]) -> None:
    """No weight, moment, loss, rate or random number differs by a bit, whatever fails, in a loop and in the Trainer."""
    first, second = run_ranks(differences, 2, chosen, launch=Launch(seconds=170))
    assert first == second == {way: dict.fromkeys(names, "") for way, names in chosen.items()}
