"""May this candidate be used here? Answered in one place, with the reason."""

from __future__ import annotations

from ..dtypes import BFLOAT16, COMPUTE, FLOAT16, FLOAT32, Dtype
from ..facts import CheckpointFacts, DeviceFacts, Kind, Verdict
from .plan import Candidate, Cost, Decision, Ground
from .policy import Policy
from .predict import predict
from .units import bytes_text

# Activations may grow beyond what was seen: two bits of room below float16's end.
_RANGE_MARGIN = 4.0
_GROUNDS = {Kind.WRONG: Ground.WRONG, Kind.UNSUPPORTED: Ground.UNSUPPORTED, Kind.CRASHES: Ground.CRASHES}
_ALWAYS_NEEDED = ("matmul", "layer_norm", "rms_norm", "softmax", "embedding")


def candidates() -> tuple[Candidate, ...]:
    """Return everything that could be loaded and run, in no order of merit."""
    return tuple(Candidate(dtype, dtype) for dtype in COMPUTE)


def judge(candidate: Candidate, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy) -> Decision:
    """Accept or reject one candidate. No other function does."""
    cost = predict(candidate, device, checkpoint, policy.workload)
    matmul = device.verdict(candidate.compute)
    found = (
        _outside_ladder(candidate, policy)
        or _bad_kernel(candidate.compute, device, checkpoint)
        or _bad_range(candidate.storage, checkpoint)
        or _bad_rounding(candidate.storage, checkpoint, policy)
        or _bad_memory(cost, device)
    )
    ground, reason = found or (None, _praise(candidate, checkpoint, matmul))
    return Decision(
        candidate,
        ground,
        reason,
        cost,
        slowdown=device.slowdown(candidate.compute),
        max_rel_error=matmul.max_rel_error,
        attention=_attention(candidate.compute, device),
    )


def needed_ops(checkpoint: CheckpointFacts) -> tuple[str, ...]:
    """Return the op families that the checkpoint's architecture runs, attention apart: it has a way around."""
    return (*_ALWAYS_NEEDED, "conv2d") if checkpoint.has_conv2d else _ALWAYS_NEEDED


def loses(storage: Dtype, checkpoint: CheckpointFacts) -> bool:
    """Whether casting the saved weights to `storage` drops bits or range."""
    return not storage.holds(checkpoint.saved)


def _outside_ladder(candidate: Candidate, policy: Policy) -> tuple[Ground, str] | None:
    if policy.ladder and candidate.compute not in policy.ladder:
        return Ground.LADDER, "the policy's ladder leaves it out"
    return None


def _bad_kernel(dtype: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts) -> tuple[Ground, str] | None:
    if device.verdict(dtype).kind is Kind.UNKNOWN:
        return Ground.UNKNOWN, f"nobody has measured {dtype} on {device.name}"
    for op in needed_ops(checkpoint):
        verdict = device.verdict(dtype, op)
        if verdict.kind in _GROUNDS:
            return _GROUNDS[verdict.kind], f"{op}: {verdict.reason}"
    return None


def _bad_range(storage: Dtype, checkpoint: CheckpointFacts) -> tuple[Ground, str] | None:
    # The same number of exponent bits: bfloat16 ends half a percent below float32 and still spans its range.
    if storage.largest * 2 > checkpoint.saved.largest:
        return None
    peak = checkpoint.peak_activation
    if peak is None:
        return Ground.RANGE, (
            f"{storage} ends at {storage.largest:.0f}; the model comes in {checkpoint.saved}, which reaches 3e38, "
            "and its activations were not measured"
        )
    if peak * _RANGE_MARGIN > storage.largest:
        return Ground.RANGE, f"activations reach {peak:.3g}, {storage} ends at {storage.largest:.0f}"
    return None


def _bad_rounding(storage: Dtype, checkpoint: CheckpointFacts, policy: Policy) -> tuple[Ground, str] | None:
    # A rescue of the range (peak_activation known) has been checked on the activations, so rounding alone is left.
    if policy.prefer == "memory" or storage.epsilon <= checkpoint.saved.epsilon:
        return None
    return Ground.ROUNDING, (
        f"rounds the {checkpoint.saved} weights to {_bits(storage)} bits, and what that does to the output was "
        "not measured; prefer=memory or an explicit dtype allows it"
    )


def _bad_memory(cost: Cost, device: DeviceFacts) -> tuple[Ground, str] | None:
    free = device.memory.free_bytes
    if cost.bytes <= free or not device.memory.total_bytes:  # a device known only by its family has no size
        return None
    return Ground.MEMORY, f"needs {bytes_text(cost.bytes)}, {bytes_text(free)} are free"


def _attention(dtype: Dtype, device: DeviceFacts) -> str | None:
    # Eager attention is matmuls and a float32 softmax: it runs where the fused kernel does not.
    return "eager" if device.verdict(dtype, "attention").kind in _GROUNDS else None


def _praise(candidate: Candidate, checkpoint: CheckpointFacts, matmul: Verdict) -> str:
    kept = "rounds the weights" if loses(candidate.storage, checkpoint) else "keeps every bit of the weights"
    return f"{kept}; {matmul.reason}" if matmul.reason else kept


def _bits(dtype: Dtype) -> int:
    return {FLOAT32: 24, FLOAT16: 11, BFLOAT16: 8}[dtype]
