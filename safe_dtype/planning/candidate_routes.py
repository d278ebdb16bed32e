"""The routes that a candidate may take: what its checkpoint and the policy leave open, for the calls of the workload."""

from __future__ import annotations

from ..facts import CODES, CheckpointFacts, DeviceFacts, Dtype
from .matmul_routes import Calls, Routes, code_routes, narrow_routes, routes_for
from .plan import Candidate
from .policy import Policy


def candidate_routes(
    candidate: Candidate, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy
) -> Routes | None:
    """Return the fastest routes that a candidate may take; None where nothing was measured."""
    if candidate.codes in CODES:
        return code_routes(candidate.storage, candidate.compute, candidate.codes, device)
    if candidate.codes is not None:
        is_exact = checkpoint.narrower == candidate.codes
        return narrow_routes(candidate.codes, device, _calls(checkpoint, policy), is_exact=is_exact)
    return routes_for(
        candidate.storage,
        candidate.compute,
        device,
        _calls(checkpoint, policy),
        can_be_laid_out=can_be_laid_out(candidate.storage, checkpoint, policy),
        can_be_compiled=_can_be_compiled(checkpoint, policy),
        has_experts=_has_experts(checkpoint),
    )


def _calls(checkpoint: CheckpointFacts, policy: Policy) -> Calls:
    """Return how many rows the calls of the workload have, and how often each is made."""
    new_tokens = policy.workload.new_tokens if checkpoint.cache.layers else 0
    return (policy.workload.prompt_tokens, 1), (1, new_tokens)


def can_be_laid_out(storage: Dtype, checkpoint: CheckpointFacts, policy: Policy) -> bool:
    """Whether the weights will be views of their files, so that a copy in another layout takes no more memory.

    In strict mode nothing is changed, and a quantizer has a layout of its own. The experts of a mixture are one tensor,
    for which blocks and codes are not made, and they are most of its weights.
    """
    return (
        _can_be_compiled(checkpoint, policy)
        and not _has_experts(checkpoint)
        and checkpoint.file_format == "safetensors"
        and storage == checkpoint.saved
    )


def _can_be_compiled(checkpoint: CheckpointFacts, policy: Policy) -> bool:
    """Whether products of the weights may be computed by other code than torch's, wherever the weights lie."""
    return policy.mode != "strict" and not checkpoint.quantization


def _has_experts(checkpoint: CheckpointFacts) -> bool:
    """Whether there are weights that a token may not pass through."""
    return any(one.active != 1.0 for one in checkpoint.linears)
