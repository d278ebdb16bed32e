"""Linear weights that are held in 8 bits, or in 16 of float32: which ways to run them there are, and which may be taken."""

from __future__ import annotations

from ..facts import (
    BFLOAT16,
    COMPUTE,
    FLOAT16,
    FLOAT32,
    INT8,
    CheckpointFacts,
    DeviceFacts,
    Dtype,
    VerdictKind,
    exceeds,
)
from .candidate_routes import can_be_laid_out
from .matmul_routes import int8_ops, int8_routes, int8_verdict, narrow_op
from .plan import Candidate, Ground
from .policy import Policy
from .predict import saved_by_codes

# What is rejected for it, with its reason. What was not measured whole is no candidate.
_BAD = (VerdictKind.WRONG, VerdictKind.UNSUPPORTED, VerdictKind.CRASHES)


def are_codes_wanted(policy: Policy, ordered: Dtype | None, *, fits: bool) -> bool:
    """Whether 8 bits are looked at: where they are asked for; else where memory counts most, or nothing else `fits`.

    A dtype that was ordered is loaded, whatever 8 bits would save.
    """
    if policy.int8 or ordered is not None:
        return policy.int8
    return policy.prefer == "memory" or not fits


def coded_candidates(device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy) -> tuple[Candidate, ...]:
    """Return the ways to run weights in 8 bits that were measured; they are judged where the policy asks, or nothing else fits."""
    saved = checkpoint.saved
    if saved not in COMPUTE or not saved_by_codes(saved, checkpoint) or not can_be_laid_out(saved, checkpoint, policy):
        return ()
    computes = [FLOAT32 if op == "matmul_int8_cast" else saved for op in int8_ops(saved)]
    return tuple(
        Candidate(saved, compute, INT8)
        for compute in computes
        if int8_routes(saved, compute, device) or int8_verdict(saved, compute, device).kind in _BAD
    )


def bad_codes(
    candidate: Candidate, checkpoint: CheckpointFacts, policy: Policy, *, is_taken_to_be_well: bool
) -> tuple[Ground, str] | None:
    """Return why 8 bits are rejected: they drift too far, or nobody knows. None: they are accepted.

    Where it cannot be measured, who asks for them gets them.
    """
    measured = checkpoint.drift(candidate.storage, candidate.compute, candidate.codes)
    if measured is not None and measured.drift is not None:
        reason = exceeds(measured.drift, policy.max_drift)
        return (Ground.DRIFT, f"against float32 {reason}") if reason else None
    if is_taken_to_be_well or (measured is not None and policy.int8):
        return None
    why = f" ({measured.problem})" if measured else ""
    what = "rounds linear weights to 8 bits, and how far that moves the output was not measured"
    return Ground.ROUNDING, f"{what}{why}"


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
        if device.verdict(FLOAT32, narrow_op(codes)).runs and saved_by_codes(FLOAT32, checkpoint, codes):
            return (Candidate(FLOAT32, FLOAT32, codes),)
    return ()


def keeps_numbers(candidate: Candidate, checkpoint: CheckpointFacts) -> bool:
    """Whether every weight is a number of what linear weights are held in, so that nothing is rounded."""
    return candidate.codes is not None and candidate.codes != INT8 and candidate.codes == checkpoint.narrower


def bad_narrow(
    candidate: Candidate, checkpoint: CheckpointFacts, policy: Policy, *, is_taken_to_be_well: bool
) -> tuple[Ground, str] | None:
    """Return why weights in 16 bit are rejected: they drift too far, or nobody knows. None: they are accepted."""
    if keeps_numbers(candidate, checkpoint):
        return None
    measured = checkpoint.drift(candidate.storage, candidate.compute, candidate.codes)
    if measured is not None and measured.drift is not None:
        reason = exceeds(measured.drift, policy.max_drift)
        return (Ground.DRIFT, f"against float32 {reason}") if reason else None
    if is_taken_to_be_well:
        return None
    why = f" ({measured.problem})" if measured else ""
    what = f"rounds linear weights to {candidate.codes}, and how far that moves the output was not measured"
    return Ground.ROUNDING, f"{what}{why}"
