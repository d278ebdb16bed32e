"""May this candidate be used here? Answered in one place, with the reason."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from ..facts import (
    BFLOAT16,
    CODES,
    COMPUTE,
    FLOAT16,
    FLOAT32,
    LEAST_SPARE_BITS,
    CheckpointFacts,
    DeviceFacts,
    Drift,
    Dtype,
    TensorFacts,
    Verdict,
    VerdictKind,
    exceeds,
    plainly,
    worst_output,
)
from ..rendering.units import bytes_text, size_text, times_text
from .candidate_routes import candidate_routes
from .fewer_bits import bad_fewer_bits, keeps_numbers
from .matmul_routes import Routes, product_verdict
from .mixed_dtypes import out_of_range, rounded_tensors
from .plan import Candidate, Cost, Decision, Ground
from .policy import Policy
from .predict import predict, weight_bytes

_GROUNDS = {
    VerdictKind.WRONG: Ground.WRONG,
    VerdictKind.UNSUPPORTED: Ground.UNSUPPORTED,
    VerdictKind.CRASHES: Ground.CRASHES,
}
_FEW = 0.05  # of a checkpoint's numbers: more of them rounded is a rounding to be measured
_KEEPS_ALL = "keeps every bit of the weights"
_ALWAYS_NEEDED = ("matmul", "layer_norm", "rms_norm", "softmax", "embedding")


def candidates(device: DeviceFacts, checkpoint: CheckpointFacts) -> tuple[Candidate, ...]:
    """Return everything that could be loaded and run, in no order of merit.

    Where that was measured, weights in 16 bit whose products are computed in float32 are among them, and for a
    checkpoint in float32 the other way round: weights in float32 that are multiplied in bfloat16.
    """
    pairs = [Candidate(dtype, dtype) for dtype in COMPUTE]
    pairs += [Candidate(one, FLOAT32) for one in (BFLOAT16, FLOAT16) if _is_measured(one, "matmul_cast", device)]
    # Not float16: activations are rounded to it as well, and it may end below them.
    if checkpoint.saved == FLOAT32 and _is_measured(FLOAT32, "matmul_narrow", device):
        pairs.append(Candidate(FLOAT32, BFLOAT16))
    return tuple(pairs)


def _is_measured(dtype: Dtype, op: str, device: DeviceFacts) -> bool:
    return device.verdict(dtype, op).kind is not VerdictKind.UNKNOWN


def judge(
    candidate: Candidate,
    device: DeviceFacts,
    checkpoint: CheckpointFacts,
    policy: Policy,
    *,
    expected: Container[Candidate] = (),
) -> Decision:
    """Accept or reject one candidate. No other function decides that.

    Args:
        candidate: What could be loaded and run.
        device: What is known of the device.
        checkpoint: What the files hold, and what was measured of it.
        policy: What the user wants.
        expected: Candidates that the first load measures before it uses them: what nobody has measured yet of their
            range and rounding is taken to be well.
    """
    storage, compute = candidate.storage, candidate.compute
    routes = candidate_routes(candidate, device, checkpoint, policy)
    if routes and storage != compute and device.verdict(storage, "conv2d").kind in _GROUNDS:
        routes = replace(routes, cast_from=1)  # whatever its products gain by that
    cost = predict(candidate, routes, device, checkpoint, policy.workload)
    product = product_verdict(storage, compute, device, routes, candidate.codes)
    rejection = (
        _outside_ladder(candidate, policy)
        or _bad_kernel(candidate, product, device, checkpoint)
        or _bad_lesson(candidate, checkpoint)
        or _bad_values(candidate, checkpoint, policy)
        or _bad_range(candidate, checkpoint, policy, expected)
        or (_bad_memory(cost, device) if candidate.codes else None)  # else not worth measuring
        or _bad_rounding(candidate, device, checkpoint, policy, expected)
        or _bad_memory(cost, device)
    )
    speed = _beside_float32(candidate, cost, device, checkpoint, policy)
    pending = is_pending(candidate, checkpoint, expected)
    praise = _praise(candidate, routes, checkpoint, product, speed)
    measured_later = [to_be_measured(candidate, checkpoint)] if pending else []
    ground, reason = rejection or (None, "; ".join([*praise, *measured_later]))
    return Decision(
        candidate,
        ground,
        reason,
        cost,
        slowdown=_slowdown(product, device),
        max_rel_error=product.max_rel_error,
        attention=_attention(candidate.storage, device),
        routes=routes,
        kind=_kind(product, device, checkpoint),
        times_float32=None if device.measured else dict(device.published).get(compute),
        pending=pending and ground in (None, Ground.MEMORY),
    )


def is_pending(candidate: Candidate, checkpoint: CheckpointFacts, expected: Container[Candidate]) -> bool:
    """Whether a candidate is only taken to be well, and is measured at the first load."""
    if candidate not in expected:
        return False
    if candidate.codes is None and candidate.storage == FLOAT16 and may_overflow(FLOAT16, checkpoint.saved):
        return checkpoint.half is None
    return checkpoint.drift(candidate.storage, candidate.compute, candidate.codes) is None


def needed_ops(checkpoint: CheckpointFacts) -> tuple[str, ...]:
    """Return the op families that the checkpoint's architecture runs, attention apart: it has a way around."""
    return (*_ALWAYS_NEEDED, "conv2d") if checkpoint.has_conv2d else _ALWAYS_NEEDED


def loses(storage: Dtype, checkpoint: CheckpointFacts) -> bool:
    """Whether casting the saved weights to `storage` drops bits or range of any."""
    return not storage.holds(checkpoint.saved) or rounded_tensors(storage, checkpoint) is not None


def _outside_ladder(candidate: Candidate, policy: Policy) -> tuple[Ground, str] | None:
    if policy.ladder and candidate.storage not in policy.ladder:
        return Ground.LADDER, "the policy's ladder leaves it out"
    return None


def _bad_kernel(
    candidate: Candidate, product: Verdict, device: DeviceFacts, checkpoint: CheckpointFacts
) -> tuple[Ground, str] | None:
    dtype = candidate.storage
    plain = device.verdict(dtype)
    if plain.kind is VerdictKind.UNKNOWN and not _is_tried(dtype, device, checkpoint):
        why = plain.reason.removeprefix("not measured").lstrip(",: ")
        return Ground.UNKNOWN, f"nobody has measured {dtype} on {device.name}{why and f': {why}'}"
    for op in needed_ops(checkpoint):
        # Products and convolutions need the kernels of the dtype that they are computed in.
        verdict = device.verdict(candidate.compute if op == "conv2d" else dtype, op)
        verdict = product if op == "matmul" else verdict
        if verdict.kind in _GROUNDS:
            return _GROUNDS[verdict.kind], f"{op}: {verdict.reason}"
    return None


def _is_tried(dtype: Dtype, device: DeviceFacts, checkpoint: CheckpointFacts) -> bool:
    """Whether float16 is tried although no source tells how fast it is there: the model was made in it."""
    return not device.measured and dtype == checkpoint.saved == FLOAT16


def _kind(product: Verdict, device: DeviceFacts, checkpoint: CheckpointFacts) -> VerdictKind:
    """Return how a candidate's products do. Accelerators whose float16 is slow are known as such; of CPUs nobody knows."""
    is_unknown = product.kind is VerdictKind.UNKNOWN and _is_tried(product.dtype, device, checkpoint)
    return VerdictKind.NATIVE if is_unknown and device.vendor != "cpu" else product.kind


def _bad_lesson(candidate: Candidate, checkpoint: CheckpointFacts) -> tuple[Ground, str] | None:
    lessons = (lesson for lesson in checkpoint.lessons if lesson.dtype == candidate.storage.name)
    lesson = next(lessons, None)
    return (Ground.LEARNED, f"an earlier guarded run failed in it here: {lesson.cause}") if lesson else None


def _bad_values(candidate: Candidate, checkpoint: CheckpointFacts, policy: Policy) -> tuple[Ground, str] | None:
    storage = candidate.storage
    if policy.mode != "strict":  # they stay in float32
        return None
    wide = out_of_range(storage, checkpoint)
    return (Ground.RANGE, f"{_reaches(wide)}, and {storage} ends at {storage.largest:.0f}") if wide else None


def _bad_range(
    candidate: Candidate, checkpoint: CheckpointFacts, policy: Policy, expected: Container[Candidate]
) -> tuple[Ground, str] | None:
    storage = candidate.storage
    half = checkpoint.half
    is_taken_to_fit = is_pending(candidate, checkpoint, expected) or (half is not None and half.stored)
    if is_taken_to_fit or not may_overflow(storage, checkpoint.saved):
        return None
    if half is None:
        return Ground.RANGE, (
            f"{storage} ends at {storage.largest:.0f}; a model that was saved in {checkpoint.saved} may go beyond, "
            "and this plan did not look at its activations: `safe-dtype rescue` does, for loads in float16"
        )
    if half.problem:
        return Ground.RANGE, half.problem
    if half.left * 2**LEAST_SPARE_BITS > storage.largest:
        return Ground.RANGE, f"{half}, and {storage} ends at {storage.largest:.0f}"
    if half.drift is None:
        return None if half.rescale is None and not half.islands else (Ground.RANGE, f"{half}, which was not verified")
    reason = exceeds(half.drift, policy.max_drift)
    return (Ground.DRIFT, f"{half}; against {half.reference} {reason}") if reason else None


def may_overflow(storage: Dtype, saved: Dtype) -> bool:
    """Whether a model that was saved in one dtype may leave the range of another one that it is held in."""
    # Codes of 8 bits have scales beside them, and tell nothing of activations: those were bfloat16's, as a rule.
    reach = saved if saved.itemsize > 1 else BFLOAT16
    # The same number of exponent bits: bfloat16 ends half a percent below float32 and still spans its range.
    return storage.largest * 2 < reach.largest


def _bad_rounding(
    candidate: Candidate,
    device: DeviceFacts,
    checkpoint: CheckpointFacts,
    policy: Policy,
    expected: Container[Candidate],
) -> tuple[Ground, str] | None:
    if candidate.codes is not None:
        is_pending_here = is_pending(candidate, checkpoint, expected)
        return bad_fewer_bits(candidate, checkpoint, policy, is_taken_to_be_well=is_pending_here)
    storage = _multiplied(candidate)
    if not rounds(candidate, device, checkpoint):
        return None
    if storage == FLOAT16 and checkpoint.half is not None and (checkpoint.half.drift or checkpoint.half.stored):
        return None  # judged with its range
    if (measured := checkpoint.drift(candidate.storage, candidate.compute)) and measured.drift is not None:
        reason = exceeds(measured.drift, policy.max_drift)
        return (Ground.DRIFT, f"against float32 {reason}") if reason else None
    if policy.prefer == "memory" or is_pending(candidate, checkpoint, expected):
        return None
    why = f" ({measured.problem})" if measured else ""
    is_coarser = storage.epsilon > checkpoint.saved.epsilon
    what = f"the {checkpoint.saved} weights" if is_coarser else str(rounded_tensors(storage, checkpoint))
    return Ground.ROUNDING, (
        f"rounds {what} to {_bits(storage)} significant bits, and how far that moves the output "
        f"was not measured{why}; prefer=memory or an explicit dtype allows it"
    )


def rounds(candidate: Candidate, device: DeviceFacts, checkpoint: CheckpointFacts) -> bool:
    """Whether significant bits of the weights are lost, of so many of them that it has to be measured, or asked for."""
    if candidate.codes is not None:
        return not keeps_numbers(candidate, checkpoint)
    storage = _multiplied(candidate)
    if storage.epsilon > checkpoint.saved.epsilon:
        return True
    rounded = rounded_tensors(storage, checkpoint)
    return rounded is not None and storage != FLOAT32 and rounded.share > _FEW and _fits_wide(device, checkpoint)


def _multiplied(candidate: Candidate) -> Dtype:
    """Return the coarsest dtype that the weights pass through."""
    return candidate.compute if candidate.storage == FLOAT32 else candidate.storage


def _fits_wide(device: DeviceFacts, checkpoint: CheckpointFacts) -> bool:
    """Whether there is room for the weights in float32: only then there is a choice not to round some of them."""
    return device.memory.has_room_for(weight_bytes(FLOAT32, checkpoint))


def _bad_memory(cost: Cost, device: DeviceFacts) -> tuple[Ground, str] | None:
    if device.memory.has_room_for(cost.bytes):  # a device known only by its family has no size
        return None
    return Ground.MEMORY, f"needs {bytes_text(cost.bytes)}, {bytes_text(device.memory.free_bytes)} {_room(device)}"


def _room(device: DeviceFacts) -> str:
    if device.memory.limited_by == "device_map":
        return "have room as device_map places it"
    if device.measured:
        return "are free"
    # Of a device that is not here only its whole size is known.
    return "are all it has, and the system takes a part" if device.is_of_main_memory else "are all it has"


def _slowdown(product: Verdict, device: DeviceFacts) -> float | None:
    base = device.verdict(FLOAT32).prefill_flops_per_s
    return base / product.prefill_flops_per_s if base and product.prefill_flops_per_s else None


def _attention(dtype: Dtype, device: DeviceFacts) -> str | None:
    # Eager attention is matmuls and a float32 softmax: it runs where the fused kernel does not.
    return "eager" if device.verdict(dtype, "attention").kind in _GROUNDS else None


def _beside_float32(
    candidate: Candidate, cost: Cost, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy
) -> str:
    """Return how the parts of the predicted seconds compare with float32's, where both are known."""
    plain = Candidate(FLOAT32, FLOAT32)
    if candidate == plain or cost.seconds is None:
        return ""
    routes = candidate_routes(plain, device, checkpoint, policy)
    base = predict(plain, routes, device, checkpoint, policy.workload)
    if not base.seconds:
        return ""
    parts = (
        ("products", cost.product_seconds, base.product_seconds),
        ("attention", cost.attention_seconds, base.attention_seconds),
    )
    ratios = [f"{_or_a_tie(mine / other, 'as long')} for {name}" for name, mine, other in parts if mine and other]
    whole = _or_a_tie(cost.seconds / base.seconds, "as long as float32", "float32's time")
    return ": ".join(filter(None, [f"takes {whole}", ", ".join(ratios)]))


def _or_a_tie(ratio: float, tie: str, of_what: str = "") -> str:
    """Return a ratio of times; where its two digits are those of 1, the words for a tie."""
    text = times_text(ratio)
    return tie if text == times_text(1.0) else f"{text} {of_what}".rstrip()


def _praise(
    candidate: Candidate, routes: Routes | None, checkpoint: CheckpointFacts, product: Verdict, speed: str
) -> list[str]:
    words = [_fate(candidate, checkpoint)]
    half = checkpoint.half
    drift, reference = _drift_of(candidate, checkpoint)
    if drift is not None:
        furthest = f", of which {output} differs most" if (output := worst_output(drift)[0]) else ""
        same = f"{drift.top1_agreement:.1%} of the top tokens the same"
        basis = "the recipe says" if half and half.recipe and candidate.storage == FLOAT16 else "measured"
        words.append(f"{basis}: KL {drift.kl_mean:.2g} nats to {reference}, {same}{furthest}")
    if half is not None and candidate.storage == FLOAT16:
        words.append(f"{half} (measured on {half.measured_on})" if half.measured_on else str(half))
    if wide := out_of_range(candidate.storage, checkpoint):
        words.append(f"{_reaches(wide)}: in float32, as saved")
    if routes and routes.layout == "blocks":
        words.append("laid out in blocks on loading")
    if routes and routes.compiled_rows:
        rows = f"up to {routes.compiled_rows} rows" if routes.compiled_rows > 1 else "one row"
        words.append(f"products of {rows} compiled for this CPU")
    if routes and routes.onednn:
        words.append("products of many rows by oneDNN")
    if speed:
        words.append(speed)
    return [*words, *product.notes]


def to_be_measured(candidate: Candidate, checkpoint: CheckpointFacts, *, is_spread: bool = False) -> str:
    """Return what the first load measures before it uses a candidate, and what measures it now.

    Args:
        candidate: What is taken to be well until then.
        checkpoint: With its source.
        is_spread: Whether the model does not fit whole: what is offloaded cannot be rescaled.
    """
    if candidate.codes is None and candidate.storage == FLOAT16 and may_overflow(FLOAT16, checkpoint.saved):
        then = (
            "and if float16 would need a rescale, which a model that is spread cannot have, another dtype is loaded"
            if is_spread
            else "and rescaled where float16 needs that"
        )
        return (
            f"its activations are measured at the first load, {then}: "
            f"`safe-dtype rescue {checkpoint.source}` measures them now"
        )
    return "what that does to the output is measured at the first load"


def _drift_of(candidate: Candidate, checkpoint: CheckpointFacts) -> tuple[Drift | None, Dtype]:
    """Return the measured drift of a candidate, and what it was measured from."""
    if checkpoint.half is not None and candidate.storage == FLOAT16 and candidate.codes is None:
        return checkpoint.half.drift, checkpoint.half.reference
    measured = checkpoint.drift(candidate.storage, candidate.compute, candidate.codes)
    return (measured.drift if measured else None), FLOAT32


def _fate(candidate: Candidate, checkpoint: CheckpointFacts) -> str:
    """Return what becomes of the weights: of all, or of some where the files mix formats."""
    if keeps_numbers(candidate, checkpoint):
        return f"every weight is a {candidate.codes} number, saved in float32; {_KEEPS_ALL}"
    if candidate.codes is not None:
        to = plainly(candidate.codes) if candidate.codes in CODES else candidate.codes
        return f"rounds linear weights to {to}"
    multiplied = _multiplied(candidate)
    # What is scaled down may lose bits at float16's lower end, whatever it was saved in.
    moved = multiplied == FLOAT16 and checkpoint.half is not None and checkpoint.half.rescale is not None
    if moved or not multiplied.holds(checkpoint.saved):
        return "rounds the weights"
    rounded = rounded_tensors(multiplied, checkpoint)
    return f"rounds {rounded}" if rounded else _KEEPS_ALL


def _reaches(wide: tuple[TensorFacts, ...]) -> str:
    """Return how far the numbers of tensors go that a dtype does not reach."""
    others = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
    return f"{wide[0].name}{others} reaches {size_text(wide[0].largest or 0.0)}"


def _bits(dtype: Dtype) -> int:
    return {FLOAT32: 24, FLOAT16: 11, BFLOAT16: 8}[dtype]
