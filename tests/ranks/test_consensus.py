"""What ranks plan from: decided once, by a pure function of what all have brought."""

from __future__ import annotations

from dataclasses import replace

import factories as f
import pytest

from safe_dtype.errors import RanksDisagreeError, RemoteFailure
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, CheckpointIdentity, LearnedFailure, VerdictKind
from safe_dtype.planning import Plan, combine_ranks, make_plan
from safe_dtype.ranks import agree
from safe_dtype.ranks.one_plan.consensus import Contribution, agreed_here, check_passed_plans, check_plans, digest

HERE = CheckpointIdentity("same tensors", "same contents")
AMPERE = Contribution("auto", "model", HERE, f.AMPERE)
TURING = replace(AMPERE, device=f.TURING)


def lesson(dtype: str) -> LearnedFailure:
    """Return what a guarded run of the model has met in a dtype."""
    return LearnedFailure("qwen3", "Linear.forward", dtype, "cuda:0", None, "RuntimeError", "not implemented")


def plan_of_all(*contributions: tuple[tuple[int, ...], Contribution]) -> Plan:
    """Return the plan for a model in bfloat16 that the ranks come to."""
    return make_plan(agree(contributions).device, f.checkpoint(BFLOAT16))


def test_like_ranks_plan_as_one() -> None:
    """A job of equal devices gets the plan of one of them."""
    assert plan_of_all(((0, 1, 2), AMPERE)) == make_plan(f.AMPERE, f.checkpoint(BFLOAT16))


def test_the_weakest_rank_decides_and_is_named() -> None:
    """A dtype that is emulated on two ranks is not chosen on any, and the explanation names them."""
    plan = plan_of_all(((0, 2), AMPERE), ((1, 3), TURING))
    assert plan.storage != BFLOAT16 or plan.compute != BFLOAT16
    assert "slow on ranks 1, 3" in plan.explain()


def test_order_does_not_matter() -> None:
    """Every rank comes to the same, in whatever order it reads what the others have brought."""
    groups = [((0, 2), AMPERE), ((1, 3), TURING)]
    assert agree(groups) == agree(groups[::-1])


def test_the_slowest_rank_sets_the_pace() -> None:
    """Rates are those of the slowest rank in each dtype, whoever is slowest there."""
    facts = combine_ranks([((0,), f.AMPERE), ((1,), f.TURING)])
    for dtype in (FLOAT32, FLOAT16):
        rates = [one.verdict(dtype).prefill_flops_per_s or 0.0 for one in (f.AMPERE, f.TURING)]
        assert facts.verdict(dtype).prefill_flops_per_s == min(rates)
    assert facts.memory.free_bytes == min(f.AMPERE.memory.free_bytes, f.TURING.memory.free_bytes)


def test_no_ranks() -> None:
    """No ranks are an error."""
    with pytest.raises(ValueError, match="at least one"):
        combine_ranks([])


def test_what_one_rank_has_learned_binds_all() -> None:
    """A dtype in which the model failed on one rank is avoided on all."""
    consensus = agree([((0,), replace(AMPERE, lessons=(lesson("bfloat16"),))), ((1,), AMPERE)])
    device, checkpoint = agreed_here(consensus, f.AMPERE, f.checkpoint(BFLOAT16))
    assert checkpoint.lessons == (lesson("bfloat16"),)
    assert make_plan(device, checkpoint).storage != BFLOAT16


def test_a_rank_whose_device_cannot_be_measured() -> None:
    """It takes part: float32 is what is left for all, and the reason is said."""
    broken = replace(AMPERE, device=replace(f.AMPERE, verdicts=()), problem="ProbeError: no memory")
    plan = plan_of_all(((0,), AMPERE), ((1,), broken))
    assert plan.storage == FLOAT32 or plan.compute == FLOAT32
    verdict = agree([((0,), AMPERE), ((1,), broken)]).device.verdict(BFLOAT16)
    assert verdict.kind is VerdictKind.UNSUPPORTED
    assert verdict.reason == "it could not be measured: ProbeError: no memory; not supported on rank 1"


def test_no_device_can_be_measured() -> None:
    """Where that holds of all ranks they end, and say why."""
    broken = replace(AMPERE, device=replace(f.AMPERE, verdicts=()), problem="ProbeError: no memory")
    with pytest.raises(RemoteFailure, match=r"cannot be measured.*no memory"):
        agree([((0, 1), broken)])


def test_a_rank_that_fails_ends_all() -> None:
    """The error of a rank that cannot read the checkpoint is heard by all."""
    with pytest.raises(RemoteFailure, match="Rank 1 failed: OSError: no such file"):
        agree([((0,), AMPERE), ((1,), Contribution("auto", failure="OSError: no such file"))])


@pytest.mark.parametrize(
    ("other", "what", "value"),
    [
        pytest.param(replace(AMPERE, identity=CheckpointIdentity("others")), "checkpoint", "tensors others", id="tensors"),
        pytest.param(
            replace(AMPERE, identity=CheckpointIdentity("same tensors", "others")), "checkpoint", "contents others",
            id="contents",
        ),
        pytest.param(replace(AMPERE, policy="strict"), "policy", "rank 1: strict", id="policy"),
    ],
)  # fmt: skip
def test_ranks_that_hold_something_else(other: Contribution, what: str, value: str) -> None:
    """Another checkpoint or another policy is an error, which says what each rank holds."""
    with pytest.raises(RanksDisagreeError, match=value) as caught:
        agree([((0, 2), AMPERE), ((1,), other)])
    assert caught.value.what == what
    assert [ranks for ranks, _ in caught.value.values] == [(0, 2), (1,)]


def test_copies_are_the_same_checkpoint() -> None:
    """Each rank may name its own folder."""
    assert agree([((0,), AMPERE), ((1,), replace(AMPERE, source="copy"))]).ranks == (0, 1)


def test_absent_ranks_count_as_far_as_they_are_known() -> None:
    """The device of a rank that has not come is planned for, with what was known at the start of the job."""
    consensus = agree([((0,), AMPERE)], absent=[((1,), f.TURING)])
    assert consensus.device.verdict(BFLOAT16).kind is VerdictKind.SLOW
    assert consensus.ranks == (0,)


def test_who_measures() -> None:
    """What is measured once is measured by the lowest of the slowest ranks that came."""
    assert agree([((0, 1), AMPERE), ((2, 3), TURING)]).measures == 2
    assert agree([((1, 2), AMPERE)]).measures == 1


def test_plans_are_the_same_on_every_device() -> None:
    """The proof leaves out the device of each rank, and nothing that is loaded."""
    plan = make_plan(f.AMPERE, f.checkpoint(BFLOAT16))
    assert digest(replace(plan, device="cuda:1", made_for=None)) == digest(plan)
    assert digest(replace(plan, storage=FLOAT32)) != digest(plan)
    with pytest.raises(RanksDisagreeError, match=r"plan: rank 0: in bf16 \[aaaaaaaa\]; rank 1: in fp16 \[bbbbbbbb\]"):
        check_plans([((0,), ("a" * 64, "in bf16")), ((1,), ("b" * 64, "in fp16"))])


def test_a_plan_that_is_passed() -> None:
    """It is the same on all ranks, or nobody goes on with it."""
    passed = replace(AMPERE, passed_plan=("a" * 64, "all in float16"))
    other = replace(passed, passed_plan=("b" * 64, "all in bfloat16"))
    check_passed_plans([((0, 2), passed), ((1,), replace(passed, device=None))])
    with pytest.raises(RanksDisagreeError, match=r"rank 1: all in bfloat16 \[bbbbbbbb\].* pass the same plan"):
        check_passed_plans([((0, 2), passed), ((1,), other), ((2,), passed)])
    with pytest.raises(RanksDisagreeError, match="on the plan: rank 0: none is passed; rank 1: all in float16"):
        agree([((0,), AMPERE), ((1,), passed)])
