"""What ranks that load one model must hold in common, and what they plan from: decided once, from the notes of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...errors import RanksDisagreeError, RemoteFailure
from ...facts import FLOAT32, CheckpointFacts, CheckpointIdentity, DeviceFacts, LearnedFailure, Verdict, VerdictKind
from ...planning import MadeFor, Plan, combine_ranks

_SAME_CHECKPOINT = "load the same files on every rank: download them again where they differ, and name a revision"
_SAME_POLICY = "pass the same policy on every rank"
_SAME_PLAN = "pass the same plan on every rank, or on none"
_SAME_SOFTWARE = "install the same versions of safe_dtype and transformers on every rank"

Members = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one rank brings to the plan of a model. With a `failure` it brings nothing else."""

    policy: str
    source: str = ""  # the checkpoint, as this rank names it
    identity: CheckpointIdentity | None = None
    device: DeviceFacts | None = None
    problem: str = ""  # why the device could not be measured
    lessons: tuple[LearnedFailure, ...] = ()  # what guarded runs of the checkpoint have met there
    failure: str = ""  # the error with which the rank ends
    passed_plan: tuple[str, str] | None = None  # of the plan that its caller passes: the digest and the summary


@dataclass(frozen=True, slots=True)
class Consensus:
    """What all ranks plan from."""

    device: DeviceFacts
    lessons: tuple[LearnedFailure, ...]
    ranks: Members  # which took part
    measures: int  # the rank that measures what is measured once


def agree(
    contributions: Sequence[tuple[Members, Contribution]], absent: Sequence[tuple[Members, DeviceFacts]] = ()
) -> Consensus:
    """Return what the ranks plan from: the weakest rank's verdicts, and what any of them has learned.

    It is a pure function of what was gathered, so it returns, or raises, the same on every rank.

    Args:
        contributions: Of all ranks that came; those with equal ones together.
        absent: What is known of the devices of ranks that did not come.

    Raises:
        RemoteFailure: If a rank failed before it had anything to bring.
        RanksDisagreeError: If checkpoints, policies or the plans that were passed differ.
    """
    ordered = sorted(contributions, key=lambda group: group[0])
    check_passed_plans(ordered)
    _check_checkpoints(ordered)
    _check_policies(ordered)
    measured = [(ranks, one.device) for ranks, one in ordered if one.device is not None and not one.problem]
    known = [*measured, *((ranks, facts) for ranks, facts in absent if facts.verdicts)]
    if not known:
        ranks, first = ordered[0]
        raise RemoteFailure(ranks[0], f"its device cannot be measured, nor that of any other rank: {first.problem}")
    failed = [
        (ranks, _taken_to_fail(brought.device, brought.problem, known[0][1]))
        for ranks, brought in ordered
        if brought.device is not None and brought.problem
    ]
    lessons = dict.fromkeys(lesson for _, one in ordered for lesson in one.lessons)
    facts = combine_ranks([*measured, *failed, *_as_far_as_known(absent, measured)])
    return Consensus(
        facts,
        tuple(lessons),
        tuple(sorted(rank for ranks, _ in ordered for rank in ranks)),
        _slowest(measured) if measured else ordered[0][0][0],
    )


def check_passed_plans(contributions: Sequence[tuple[Members, Contribution]]) -> None:
    """Raise unless the callers of all ranks have passed the same plan, or none.

    Raises:
        RemoteFailure: If a rank failed before it had anything to bring.
        RanksDisagreeError: If they have not.
    """
    for ranks, contribution in sorted(contributions, key=lambda group: group[0]):
        if contribution.failure:
            raise RemoteFailure(ranks[0], contribution.failure)
    passed: dict[tuple[str, str], set[int]] = {}
    for ranks, contribution in contributions:
        passed.setdefault(contribution.passed_plan or ("", "none is passed"), set()).update(ranks)
    _check_same([(tuple(sorted(ranks)), plan) for plan, ranks in passed.items()], _SAME_PLAN)


def agreed_here(
    consensus: Consensus, mine: DeviceFacts, checkpoint: CheckpointFacts
) -> tuple[DeviceFacts, CheckpointFacts]:
    """Return the facts that this rank plans from: those of all, on its own device."""
    device = replace(
        consensus.device, device=mine.device, settings=mine.settings, driver=mine.driver, versions=mine.versions
    )
    return device, replace(checkpoint, lessons=consensus.lessons)


def digest(plan: Plan) -> str:
    """Return what two plans have in common that load the same, each on its own device."""
    values = {**plan.to_dict(), "device": "", "made_for": None}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_plans(plans: Sequence[tuple[Members, tuple[str, str]]]) -> None:
    """Raise unless all ranks have made the same plan.

    Args:
        plans: Ranks, and of their plan the digest and the summary.

    Raises:
        RanksDisagreeError: If they have not.
    """
    _check_same(plans, _SAME_SOFTWARE)


def _check_same(plans: Sequence[tuple[Members, tuple[str, str]]], advice: str) -> None:
    if len({made for _, (made, _) in plans}) > 1:
        values = tuple(
            (ranks, f"{summary} [{made[:8]}]" if made else summary) for ranks, (made, summary) in sorted(plans)
        )
        raise RanksDisagreeError("plan", values, advice)


def _check_checkpoints(ordered: Sequence[tuple[Members, Contribution]]) -> None:
    first = ordered[0][1]
    same = MadeFor(first.source, first.identity)
    others = {
        contradiction.here
        for _, brought in ordered[1:]
        for contradiction in same.contradictions(MadeFor(brought.source, brought.identity))
    }
    if others:
        values = tuple((ranks, f"{one.source} {_short(one.identity)}") for ranks, one in ordered)
        raise RanksDisagreeError("checkpoint", values, _SAME_CHECKPOINT)


def _short(identity: CheckpointIdentity | None) -> str:
    if identity is None:
        return "(not known)"
    if identity.commit:
        return f"at {identity.commit[:12]}"
    contents = identity.contents or identity.blobs
    return f"(tensors {identity.tensors[:8]}{f', contents {contents[:8]}' if contents else ''})"


def _check_policies(ordered: Sequence[tuple[Members, Contribution]]) -> None:
    if len({one.policy for _, one in ordered}) > 1:
        raise RanksDisagreeError("policy", tuple((ranks, one.policy) for ranks, one in ordered), _SAME_POLICY)


def _taken_to_fail(device: DeviceFacts, problem: str, like: DeviceFacts) -> DeviceFacts:
    """Return the facts of a device that could not be measured: float32 is all that is taken to run there."""
    reason = f"it could not be measured: {problem}"
    return replace(
        device,
        verdicts=tuple(
            verdict
            if verdict.dtype == FLOAT32
            else Verdict(verdict.dtype, verdict.op, VerdictKind.UNSUPPORTED, reason)
            for verdict in like.verdicts
        ),
    )


def _as_far_as_known(
    absent: Iterable[tuple[Members, DeviceFacts]], measured: Sequence[tuple[Members, DeviceFacts]]
) -> list[tuple[Members, DeviceFacts]]:
    """Return the facts of absent ranks: of an operation that was not asked of them, what the others were measured to do."""
    if not measured:
        return list(absent)
    like = measured[0][1]
    return [
        (
            ranks,
            replace(
                facts,
                memory=like.memory,
                verdicts=tuple(
                    other if (own := facts.verdict(other.dtype, other.op)).kind is VerdictKind.UNKNOWN else own
                    for other in like.verdicts
                ),
            ),
        )
        for ranks, facts in absent
    ]


def _slowest(measured: Sequence[tuple[Members, DeviceFacts]]) -> int:
    """Return the lowest of the slowest ranks in float32: what holds there is likeliest to hold on all."""
    ranks, _ = min(measured, key=lambda group: (group[1].verdict(FLOAT32).prefill_flops_per_s or 0.0, group[0]))
    return ranks[0]
