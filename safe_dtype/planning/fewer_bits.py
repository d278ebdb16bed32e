"""Linear weights that are held in 8 or 4 bits, or in 16 of float32: which ways to run them there are, and which may be taken."""

from __future__ import annotations

from collections.abc import Iterable

from ..facts import (
    BFLOAT16,
    CODES,
    COMPUTE,
    FLOAT16,
    FLOAT32,
    INT8,
    CheckpointFacts,
    DeviceFacts,
    Dtype,
    VerdictKind,
    exceeds,
    limit_for,
    plainly,
)
from .candidate_routes import can_be_laid_out
from .matmul_routes import code_ops, code_routes, code_verdict, computed_by, narrow_op
from .plan import Candidate, Decision, Ground
from .policy import Policy
from .predict import saved_by_codes

# What is rejected for it, with its reason. What was not measured whole is no candidate.
_BAD = (VerdictKind.WRONG, VerdictKind.UNSUPPORTED, VerdictKind.CRASHES)
# A rounding that stays within the limit, or may, or that goes beyond it: fewer bits would go further.
_SETTLED = (None, Ground.ROUNDING, Ground.DRIFT)


def codes_wanted(policy: Policy, ordered: Dtype | None, *, fits: bool) -> tuple[Dtype, ...]:
    """Return which codes are looked at: those that are asked for; else where memory counts most 8 bits, where nothing `fits` any.

    Of several one after the other, until they `would_hold`. A dtype that was ordered is loaded, whatever codes would save.
    """
    if policy.codes or ordered is not None:
        return (policy.codes,) if policy.codes else ()
    if not fits:
        return CODES
    return (INT8,) if policy.prefer == "memory" else ()


def would_hold(coded: Iterable[Decision]) -> bool:
    """Whether no codes of fewer bits are to be looked at after these candidates, which have room."""
    return any(one.ground in _SETTLED for one in coded)


def coded_candidates(
    codes: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy
) -> tuple[Candidate, ...]:
    """Return the ways to run weights in `codes` that were measured; they are judged where the policy asks, or nothing else fits."""
    saved = checkpoint.saved
    if saved not in COMPUTE or not saved_by_codes(saved, codes, checkpoint):
        return ()
    if not can_be_laid_out(saved, checkpoint, policy):
        return ()
    computes = [computed_by(op, saved) for op in code_ops(saved, codes)]
    return tuple(
        Candidate(saved, compute, codes)
        for compute in computes
        if code_routes(saved, compute, codes, device) or code_verdict(saved, compute, codes, device).kind in _BAD
    )


def narrow_candidates(
    device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy, ordered: Dtype | None
) -> tuple[Candidate, ...]:
    """Return the way to hold the weights of a float32 checkpoint in 16 bit, where its products were measured.

    Of what has to be rounded, float16 keeps three bits more than bfloat16. Nothing is rounded where float32 is ordered.
    """
    if checkpoint.saved != FLOAT32 or not can_be_laid_out(FLOAT32, checkpoint, policy):
        return ()
    if checkpoint.narrower is not None:
        dtypes = [checkpoint.narrower]
    else:
        dtypes = [FLOAT16, BFLOAT16] if ordered is None else []
    for codes in dtypes:
        if device.verdict(FLOAT32, narrow_op(codes)).runs and saved_by_codes(FLOAT32, codes, checkpoint):
            return (Candidate(FLOAT32, FLOAT32, codes),)
    return ()


def keeps_numbers(candidate: Candidate, checkpoint: CheckpointFacts) -> bool:
    """Whether every weight is a number of what linear weights are held in, so that nothing is rounded."""
    return candidate.codes is not None and candidate.codes == checkpoint.narrower


def bad_fewer_bits(
    candidate: Candidate, checkpoint: CheckpointFacts, policy: Policy, *, is_taken_to_be_well: bool
) -> tuple[Ground, str] | None:
    """Return why weights in fewer bits are rejected: they drift too far, or nobody knows. None: they are accepted.

    Where it cannot be measured, who asks for codes gets them.
    """
    if candidate.codes is None or keeps_numbers(candidate, checkpoint):
        return None
    measured = checkpoint.drift(candidate.storage, candidate.compute, candidate.codes)
    if measured is not None and measured.drift is not None:
        reason = exceeds(measured.drift, policy.max_drift)
        return (Ground.DRIFT, f"against float32 {reason}") if reason else None
    if is_taken_to_be_well or (measured is not None and policy.codes == candidate.codes):
        return None
    why = f" ({measured.problem})" if measured else ""
    to = f"{plainly(candidate.codes).bits} bits" if candidate.codes in CODES else candidate.codes
    what = f"rounds linear weights to {to}, and how far that moves the output was not measured"
    return Ground.ROUNDING, f"{what}{why}"


def enough_for(coded: Iterable[Decision], checkpoint: CheckpointFacts) -> float | None:
    """Return the least `max_drift` that would take one of these, of those whose drift is too large; None where there is none."""
    limits = []
    for candidate in (decision.candidate for decision in coded if decision.ground is Ground.DRIFT):
        measured = checkpoint.drift(candidate.storage, candidate.compute, candidate.codes)
        if measured is not None and measured.drift is not None and (limit := limit_for(measured.drift)) is not None:
            limits.append(limit)
    return min(limits, default=None)
