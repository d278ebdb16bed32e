"""The order of what was accepted, and the sentence that says why the first is first."""

from __future__ import annotations

from dataclasses import replace

import factories as f
import pytest

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.planning import Candidate, Cost, Decision, Ground, Policy
from safe_dtype.planning.rank import PlanningCase, merit, ranked


def decision(dtype: Dtype, seconds: float | None, gigabytes: float = 1, *, compute: Dtype | None = None) -> Decision:
    """Return an accepted candidate that takes so many seconds and bytes."""
    cost = Cost(seconds, None if seconds is None else 0.0, round(gigabytes * f.GB), 0, 0)
    return Decision(Candidate(dtype, compute or dtype), None, "keeps every bit", cost)


def case(*decisions: Decision, policy: str = "auto", saved: Dtype = BFLOAT16) -> PlanningCase:
    """Return a case on an A100."""
    return PlanningCase(f.AMPERE, f.checkpoint(saved), Policy.parse(policy), None, decisions)


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        pytest.param((2.0, 1.0, 1.5), BFLOAT16, id="the-fastest"),
        pytest.param((1.09, 1.0, 1.5), FLOAT32, id="within-a-tenth-the-most-exact"),
        pytest.param((1.11, 1.0, 1.5), BFLOAT16, id="beyond-a-tenth-not"),
        pytest.param((2.0, 1.0, 1.0), BFLOAT16, id="float16-loses-bits-of-a-bfloat16-checkpoint"),
    ],
)
def test_speed(seconds: tuple[float, float, float], first: Dtype) -> None:
    """The least time wins; what is within a tenth of it counts as equal, and then the more exact is taken."""
    decisions = [decision(dtype, time) for dtype, time in zip((FLOAT32, BFLOAT16, FLOAT16), seconds, strict=True)]
    assert ranked(case(*decisions))[0].candidate.storage == first


def test_speed_in_whatever_order_they_come() -> None:
    """The order of the candidates says nothing."""
    decisions = [decision(FLOAT32, 3.0), decision(BFLOAT16, 1.0), decision(FLOAT16, 2.0)]
    expected = [BFLOAT16, FLOAT16, FLOAT32]
    assert [one.candidate.storage for one in ranked(case(*decisions))] == expected
    assert [one.candidate.storage for one in ranked(case(*reversed(decisions)))] == expected


def test_rejected_candidates_are_left_out() -> None:
    """However fast a rejected candidate is, it is not ranked."""
    rejected = replace(decision(FLOAT16, 0.1), ground=Ground.RANGE)
    assert ranked(case(decision(FLOAT32, 3.0), rejected)) == [decision(FLOAT32, 3.0)]


def test_memory_then_speed() -> None:
    """prefer=memory takes the smallest, and of two that are equally small the faster."""
    decisions = decision(FLOAT32, 1.0, 4), decision(BFLOAT16, 3.0, 2), decision(FLOAT16, 2.0, 2)
    assert [one.candidate.storage for one in ranked(case(*decisions, policy="prefer=memory"))] == [
        FLOAT16, BFLOAT16, FLOAT32,
    ]  # fmt: skip


def test_memory_rounds_for_bytes_alone() -> None:
    """prefer=memory never takes a rounding that saves no byte, however fast it is."""
    float16, bfloat16 = decision(FLOAT16, 9.0, 2), decision(BFLOAT16, 1.0, 2)
    decisions = decision(FLOAT32, 1.0, 4), bfloat16, float16
    assert ranked(case(*decisions, policy="prefer=memory", saved=FLOAT16))[0] == float16
    smaller = decision(BFLOAT16, 1.0, 1.9)
    assert ranked(case(*decisions, smaller, policy="prefer=memory", saved=FLOAT16))[0] == smaller


def test_memory_where_all_round() -> None:
    """Of two roundings to the same size, prefer=memory takes the finer one."""
    float16, bfloat16 = decision(FLOAT16, 9.0, 2), decision(BFLOAT16, 1.0, 2)
    ranking = ranked(case(bfloat16, float16, decision(FLOAT32, 1.0, 4), policy="prefer=memory", saved=FLOAT32))
    assert [one.candidate.storage for one in ranking] == [FLOAT16, BFLOAT16, FLOAT32]


def test_fidelity() -> None:
    """prefer=fidelity takes what loses no bit, then the finer storage, then the finer product."""
    decisions = (
        decision(FLOAT16, 1.0),
        decision(BFLOAT16, 1.0),
        decision(BFLOAT16, 2.0, compute=FLOAT32),
        decision(FLOAT32, 9.0),
    )
    order = [one.candidate for one in ranked(case(*decisions, policy="prefer=fidelity"))]
    assert order == [
        Candidate(FLOAT32, FLOAT32), Candidate(BFLOAT16, FLOAT32), Candidate(BFLOAT16, BFLOAT16),
        Candidate(FLOAT16, FLOAT16),
    ]  # fmt: skip


def test_ladder_before_speed() -> None:
    """The policy's ladder is the order, and of two that store the same dtype the faster comes first."""
    decisions = decision(BFLOAT16, 9.0), decision(BFLOAT16, 1.0, compute=FLOAT32), decision(FLOAT32, 0.1)
    order = [one.candidate for one in ranked(case(*decisions, policy="ladder=bf16>fp32"))]
    assert order == [Candidate(BFLOAT16, FLOAT32), Candidate(BFLOAT16, BFLOAT16), Candidate(FLOAT32, FLOAT32)]


def test_without_rates_the_prior_order() -> None:
    """Native before slow, then the order of the prior table; what was timed comes before what was not."""
    unmeasured = replace(case(), device=replace(f.TURING, prior_order=(BFLOAT16, FLOAT16, FLOAT32)))
    decisions = tuple(decision(dtype, None) for dtype in (FLOAT32, BFLOAT16, FLOAT16))
    order = [one.candidate.storage for one in ranked(replace(unmeasured, decisions=decisions))]
    assert order == [FLOAT16, FLOAT32, BFLOAT16]  # a T4 is slow in bfloat16
    timed = decision(BFLOAT16, 99.0)
    assert ranked(replace(unmeasured, decisions=(*decisions[::2], timed)))[0] == timed


@pytest.mark.parametrize(
    ("policy", "decisions", "words"),
    [
        pytest.param("auto", [(FLOAT32, 1.0)], "the only one accepted here: keeps every bit", id="alone"),
        pytest.param("ladder=fp32>bf16", [(FLOAT32, 2.0), (BFLOAT16, 1.0)], "ladder", id="ladder"),
        pytest.param("prefer=memory", [(BFLOAT16, 2.0), (FLOAT32, 1.0)], "smallest: 1 GB", id="memory"),
        pytest.param("prefer=fidelity", [(FLOAT32, 2.0), (BFLOAT16, 1.0)], "most exact of 2", id="fidelity"),
        pytest.param("auto", [(BFLOAT16, 1.0), (FLOAT32, 2.5)], "float32 would take 2.5 times", id="speed"),
        pytest.param("auto", [(FLOAT32, 1.05), (BFLOAT16, 1.0)], "bfloat16 within 10 %", id="tie"),
        pytest.param("auto", [(BFLOAT16, None), (FLOAT32, None)], "published facts", id="no-rates"),
        pytest.param("auto", [(FLOAT32, 1.0), (BFLOAT16, 1.13)], "bfloat16 would take 13 % longer", id="a-little"),
        pytest.param("auto", [(FLOAT32, 1.0), (BFLOAT16, 400.0)], "bfloat16 would take 400 times as long", id="far"),
        pytest.param(
            "auto",
            [(FLOAT32, 1.0), (BFLOAT16, 1.004)],
            "bfloat16 takes as long within 10 %, and is less exact",
            id="equal",
        ),
        pytest.param(
            "auto",
            [(BFLOAT16, 1.0), (BFLOAT16, 1.05)],
            "takes as long within 10 %, and is not more exact",
            id="equal-in-all",
        ),
        pytest.param(
            "auto",
            [(FLOAT32, 1.0), (BFLOAT16, None)],
            "the only one accepted here whose speed was measured",
            id="one-rate",
        ),
    ],
)
def test_merit(policy: str, decisions: list[tuple[Dtype, float | None]], words: str) -> None:
    """The reason names what decided: the preference, the rival and by how much."""
    accepted = [decision(dtype, seconds) for dtype, seconds in decisions]
    assert words in merit(accepted[0], case(*accepted, policy=policy))
