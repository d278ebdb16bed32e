"""The accepted candidates, best first, and why the first is first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..facts import CODES, FLOAT16, FLOAT32, CheckpointFacts, DeviceFacts, Dtype, VerdictKind
from ..rendering.units import bytes_text, longer_text, times_text
from .fewer_bits import keeps_numbers
from .judge import loses, rounds
from .plan import Decision, Ground
from .policy import Policy

# Measured rates repeat to about a tenth on a busy machine: nearer than that, times are equal and fidelity decides.
_TIE = 1.10

_REJECTED_FOR = {
    Ground.WRONG: "wrong results",
    Ground.UNSUPPORTED: "its kernels are missing",
    Ground.CRASHES: "its kernels crash",
    Ground.UNKNOWN: "not measured",
    Ground.RANGE: "may overflow",
    Ground.ROUNDING: "rounds the weights",
    Ground.DRIFT: "drifts too far",
    Ground.LEARNED: "failed before",
    Ground.MEMORY: "does not fit",
    Ground.LADDER: "not on the policy's ladder",
}


@dataclass(frozen=True, slots=True)
class PlanningCase:
    """Everything a plan is made from, with the verdict on every candidate."""

    device: DeviceFacts
    checkpoint: CheckpointFacts
    policy: Policy
    ordered: Dtype | None
    decisions: tuple[Decision, ...]

    @property
    def accepted(self) -> list[Decision]:
        """The candidates that may be used."""
        return [one for one in self.decisions if one.accepted]


def ranked(case: PlanningCase) -> list[Decision]:
    """Return the accepted decisions, best first by the policy."""
    in_order = _ranked(case)
    if case.policy.codes:
        return sorted(in_order, key=lambda one: one.candidate.codes != case.policy.codes)
    return in_order


def _ranked(case: PlanningCase) -> list[Decision]:
    if case.policy.ladder:
        return sorted(
            case.accepted, key=lambda one: (case.policy.ladder.index(one.candidate.storage), _speed(one, case))
        )
    by_speed = sorted(case.accepted, key=lambda one: _speed(one, case))
    if case.policy.prefer == "memory":
        return sorted(by_speed, key=lambda one: (one.cost.bytes, _rounding(one, case)))
    if case.policy.prefer == "fidelity":
        return sorted(by_speed, key=lambda one: _infidelity(one, case))
    return _ties_by_fidelity(by_speed, case)


def smallest_first(case: PlanningCase) -> list[Decision]:
    """Return the candidates that are right and do not fit, the smallest first, of equal ones the faster.

    A rescued float16 and codes are not among them: what is offloaded can be neither rescaled nor rounded.
    """
    half = case.checkpoint.half
    is_rescued = half is not None and bool(half.rescale or half.islands)
    too_big = [one for one in case.decisions if one.ground is Ground.MEMORY and not one.candidate.codes]
    whole = [one for one in too_big if not (is_rescued and one.candidate.storage == FLOAT16)]
    return sorted(whole or too_big, key=lambda one: (one.cost.bytes, _speed(one, case)))


def merit(picked: Decision, case: PlanningCase) -> str:
    """Return the reason why `picked` comes before the other accepted candidates."""
    why = _merit(picked, case)
    if keeps_numbers(picked.candidate, case.checkpoint):
        return f"saved in float32, every weight is a {picked.candidate.codes} number; {why}"
    return why


def _merit(picked: Decision, case: PlanningCase) -> str:
    others = [one for one in case.accepted if one is not picked]
    is_last_resort = all(one.candidate.codes in CODES for one in others)
    if picked.candidate.codes in CODES and (case.policy.codes or is_last_resort):
        codes = case.policy.codes
        return f"as asked for: {codes}" if codes else "nothing wider that is right here fits"
    if not others:
        return _only(picked, case)
    if case.policy.ladder:
        return "first on the policy's ladder"
    if case.policy.prefer == "memory":
        return f"the smallest: {bytes_text(picked.cost.bytes)}"
    if case.policy.prefer == "fidelity":
        return f"the most exact of {len(others) + 1}"
    return _merit_in_speed(picked, others, case)


def _only(picked: Decision, case: PlanningCase) -> str:
    mine = picked.candidate.storage
    rejected = {
        decision.candidate.storage: _REJECTED_FOR[decision.ground]
        for decision in case.decisions
        if decision.ground and decision.candidate.storage != mine
    }
    others = ", ".join(f"{dtype} ({what})" for dtype, what in rejected.items())
    return "the only one accepted here" + (f": {picked.reason}" if not rejected else f"; rejected: {others}")


def _expected_ratios(picked: Decision, others: list[Decision], case: PlanningCase) -> list[str]:
    """Return how much faster than the others a device nobody measured should be, as far as that follows from facts."""
    if picked.kind is not VerdictKind.NATIVE or picked.candidate.storage.itemsize >= FLOAT32.itemsize:
        return []
    decodes = bool(case.checkpoint.cache.layers)
    where = " in prompts" if decodes else ""
    faster = f", up to {times_text(picked.times_float32)} as fast{where} (peak rates)" if picked.times_float32 else ""
    slow = [str(one.candidate) for one in others if one.kind is VerdictKind.SLOW]
    return [
        f"against float32, half the bytes to read{' for each new token' if decodes else ''}{faster}",
        *(f"{dtype} is slow there" for dtype in slow),
    ]


def _speed(decision: Decision, case: PlanningCase) -> tuple[float, ...]:
    if decision.cost.seconds is not None:
        return 0.0, decision.cost.seconds
    # No rates: native before slow, then the prior table's order, then the smaller.
    storage, order = decision.candidate.storage, case.device.prior_order
    slow = VerdictKind.NATIVE not in (decision.kind, case.device.verdict(storage).kind)
    unlisted = -1 if storage == case.checkpoint.saved else len(order)
    return 1.0, float(slow), order.index(storage) if storage in order else unlisted, storage.itemsize


def _rounding(decision: Decision, case: PlanningCase) -> float:
    """Return how coarsely the weights are rounded, which only saved bytes are worth."""
    candidate = decision.candidate
    return candidate.storage.epsilon if rounds(candidate, case.device, case.checkpoint) else 0.0


def _infidelity(decision: Decision, case: PlanningCase) -> tuple[bool, bool, float, float]:
    storage, compute = decision.candidate.storage, decision.candidate.compute
    # What passes from product to product is rounded to the storage dtype.
    multiplied = compute if storage == FLOAT32 else storage
    rounded = decision.candidate.codes is not None and not keeps_numbers(decision.candidate, case.checkpoint)
    return rounded, loses(multiplied, case.checkpoint), max(storage.epsilon, multiplied.epsilon), compute.epsilon


def _ties_by_fidelity(by_speed: list[Decision], case: PlanningCase) -> list[Decision]:
    fastest = by_speed[0].cost.seconds if by_speed else None
    if fastest is None:
        return by_speed
    tied = _no_slower(by_speed, fastest * _TIE)
    # Of two that are as exact the smaller: float32 weights that are 16-bit numbers need not be held as float32.
    return sorted(tied, key=lambda one: (_infidelity(one, case), one.cost.bytes)) + by_speed[len(tied) :]


def _no_slower(decisions: Iterable[Decision], seconds: float) -> list[Decision]:
    return [one for one in decisions if one.cost.seconds is not None and one.cost.seconds <= seconds]


def _merit_in_speed(picked: Decision, others: list[Decision], case: PlanningCase) -> str:
    mine = picked.cost.seconds
    if mine is None:
        family = case.device.family or case.device.name
        order = f"published facts about {family} put it first of the {len(others) + 1} accepted"
        return "; ".join([order, *_expected_ratios(picked, others, case)])
    if faster := _no_slower(others, mine):
        is_as_exact = _infidelity(picked, case) == _infidelity(faster[0], case)
        return f"as fast as {faster[0].candidate} within 10 %, and {'smaller' if is_as_exact else 'more exact'}"
    timed = [(one.cost.seconds / mine, one) for one in others if one.cost.seconds is not None]
    if not timed:
        return "the only one accepted here whose speed was measured"
    ratio, rival = min(timed, key=lambda pair: pair[0])
    if ratio <= _TIE:
        is_finer = _infidelity(picked, case) < _infidelity(rival, case)
        return f"{rival.candidate} takes as long within 10 %, and is {'less' if is_finer else 'not more'} exact"
    return f"fastest here: {rival.candidate} would take {longer_text(ratio)}"
