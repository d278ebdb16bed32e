"""A plan as a table."""

from __future__ import annotations

import factories as f

from safe_dtype.facts import BFLOAT16
from safe_dtype.planning import make_plan


def test_explain_shows_every_reason() -> None:
    """The table names the choice, why, and why not each of the others."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16))
    text = plan.explain(width=200)
    assert plan.reason in text
    for decision in plan.decisions:
        assert decision.reason in text
    assert max(map(len, plan.explain(width=80).splitlines())) <= 80
