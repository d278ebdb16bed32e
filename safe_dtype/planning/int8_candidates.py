"""Linear weights that are rounded to 8 bits: which ways to run them there are, and whether their drift allows one."""

from __future__ import annotations

from ..facts import COMPUTE, FLOAT32, INT8, CheckpointFacts, DeviceFacts, Dtype, VerdictKind, exceeds
from .candidate_routes import can_be_laid_out
from .matmul_routes import int8_ops, int8_routes, int8_verdict
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
