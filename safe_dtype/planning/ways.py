"""What would fit where a checkpoint does not: other dtypes, fewer bits, more devices, a smaller context."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ..facts import CODES, CheckpointFacts, DeviceFacts, plainly
from ..rendering.units import bytes_text
from .candidate_routes import can_be_laid_out
from .plan import Candidate, Decision, Ground, Plan, WayToFit
from .policy import Policy, Workload
from .predict import predict, saved_by_codes
from .quantizers import quantizes_to
from .rank import PlanningCase

# A float32 scale for each row of int8, and for each 64 numbers of 4 bits, as bitsandbytes keeps them by default. The
# head, embeddings and norms stay in 16 bit.
_BITS = {8: 8.0, 4: 4.5}
_MOST_DEVICES = 16


def ways_to_fit(
    picked: Decision, decisions: tuple[Decision, ...], device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy
) -> tuple[WayToFit, ...]:
    """Return the dtypes that are right on the device and what they take, then the ways that would take less.

    Args:
        picked: The decision that is planned although it does not fit.
        decisions: Those on all candidates.
        device: Its memory is known.
        checkpoint: What its files hold.
        policy: With the workload.
    """
    free = device.memory.free_bytes
    right = [one for one in decisions if one.ground in (None, Ground.MEMORY)]
    plain = [one for one in right if one.candidate.storage == one.candidate.compute and not one.candidate.codes]
    far = [one.candidate.codes for one in decisions if one.ground is Ground.DRIFT]
    drifts = {plainly(codes).bits for codes in far if codes in CODES}
    ours = tuple(_codes(device, checkpoint, policy, above=max(drifts, default=0)))
    return (
        *(_whole(str(one.candidate), one.cost.weight_bytes, one, free) for one in plain),
        *(way for _, way in ours),
        *_fewer_bits(picked, device, checkpoint, without=(*(bits for bits, _ in ours), *drifts)),
        *_smaller_context(picked, device, checkpoint, policy),
        *_offloaded(picked, device),
        *_several_devices(picked, device),
    )


def ways_with_codes(
    left: Decision, case: PlanningCase, without_codes: tuple[Plan, CheckpointFacts] | None
) -> tuple[WayToFit, ...]:
    """Return what would run in place of a quantized checkpoint whose codes do not run on the device, or do not fit.

    Args:
        left: The decision that its quantizer is left with.
        case: What it was made from.
        without_codes: The plan of the model that it was quantized from, and its facts.
    """
    device, free = case.device, case.device.memory.free_bytes
    if left.ground is Ground.MEMORY:
        return (
            _whole("as it is", left.cost.weight_bytes, left, free),
            *_smaller_context(left, device, case.checkpoint, case.policy),
            *_several_devices(left, device),
        )
    plan, original = without_codes or (None, None)
    picked = plan.chosen if plan else None
    if not (plan and original and picked):
        return ()
    note = "what it was quantized from; its bytes follow from the codes"
    row = _whole(f"{picked.candidate}, not quantized", picked.cost.weight_bytes, picked, free, note)
    known = device.memory.total_bytes > 0
    whole = {str(decision.candidate) for decision in plan.decisions}
    others = [way for way in plan.ways if way.name not in whole] or _fewer_bits(picked, device, original)
    return (replace(row, fits=row.fits or not known), *others)


def _whole(name: str, weights: int, decision: Decision, free: int, note: str = "") -> WayToFit:
    total = weights + decision.cost.cache_bytes + decision.cost.work_bytes
    return WayToFit(name, weights, decision.cost.cache_bytes, total, fits=total <= free, note=note)


def _codes(
    device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy, *, above: int
) -> Iterator[tuple[int, WayToFit]]:
    """Yield the weights that the `int8` and the `int4` of a policy round, where they can, with the bits of a code.

    Only of more bits than were measured to drift too far: those are `above` these.
    """
    saved = checkpoint.saved
    if device.vendor != "cpu" or not can_be_laid_out(saved, checkpoint, policy):
        return
    for codes in CODES:
        bits = plainly(codes).bits
        if bits > above and saved_by_codes(saved, codes, checkpoint) > 0:
            cost = predict(Candidate(saved, saved, codes), None, device, checkpoint, policy.workload)
            note = f"rounds linear weights, where that is measured to stay within max_drift: --policy {codes}"
            fits = cost.bytes <= device.memory.free_bytes
            yield bits, WayToFit(f"{codes} weights", cost.weight_bytes, cost.cache_bytes, cost.bytes, fits, note)


def _fewer_bits(
    picked: Decision, device: DeviceFacts, checkpoint: CheckpointFacts, *, without: tuple[int, ...] = ()
) -> Iterator[WayToFit]:
    """Yield the weights in 8 and 4 bits, where something runs on the device that quantizes them while it loads.

    The experts of a mixture are one tensor, and no linear module that a quantizer would replace.
    """
    body = sum(linear.numel for linear in checkpoint.linears if linear.per_position and linear.active == 1.0)
    rest = max(0, picked.cost.weight_bytes - body * picked.candidate.storage.itemsize)
    for bits, bits_in_all in _BITS.items():
        quantizer = quantizes_to(bits, device)
        if bits in without or quantizer is None or not body:
            continue
        packages = " and ".join(quantizer.packages)
        config = f"quantization_config=BitsAndBytesConfig(load_in_{bits}bit=True)"
        note = f"rounds the weights; {config}, with the package {packages}"
        weights = rest + round(body * bits_in_all / 8)
        yield _whole(f"int{bits} weights", weights, picked, device.memory.free_bytes, note)


def _smaller_context(
    picked: Decision, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy
) -> Iterator[WayToFit]:
    """Yield the longest prompt and answer, in the proportion of the workload, that fit with the weights whole; none without tokens."""
    if not checkpoint.takes_tokens:
        return
    workload = policy.workload
    tokens = workload.prompt_tokens + workload.new_tokens
    lower, upper = 0, tokens  # the first fits (nothing is asked), the second does not
    while upper - lower > max(1, tokens // 128):
        middle = (lower + upper) // 2
        cost = predict(picked.candidate, picked.routes, device, checkpoint, _of_length(middle, workload))
        lower, upper = (middle, upper) if cost.bytes <= device.memory.free_bytes else (lower, middle)
    if lower < 1:
        return
    shorter = _of_length(lower, workload)
    cost = predict(picked.candidate, picked.routes, device, checkpoint, shorter)
    note = f"in place of {tokens:,}: --policy prompt={shorter.prompt_tokens},new={shorter.new_tokens}"
    name = f"{picked.candidate}, {lower:,} tokens"
    yield WayToFit(name, cost.weight_bytes, cost.cache_bytes, cost.bytes, fits=True, note=note)


def _of_length(tokens: int, workload: Workload) -> Workload:
    prompt = max(1, tokens * workload.prompt_tokens // (workload.prompt_tokens + workload.new_tokens))
    return replace(workload, prompt_tokens=prompt, new_tokens=max(0, tokens - prompt))


def _offloaded(picked: Decision, device: DeviceFacts) -> Iterator[WayToFit]:
    cost, free = picked.cost, device.memory.free_bytes
    here = free - cost.cache_bytes - cost.work_bytes
    if here > 0:
        elsewhere = bytes_text(cost.weight_bytes - min(here, cost.weight_bytes))
        where = "on disk" if device.is_of_main_memory else "in main memory or on disk"
        note = f"{elsewhere} of the weights {where}, and every step waits for them"
        yield _whole(f"{picked.candidate}, device_map='auto'", min(here, cost.weight_bytes), picked, free, note)


def _several_devices(picked: Decision, device: DeviceFacts) -> Iterator[WayToFit]:
    if device.is_of_main_memory:  # device_map has no place on another machine
        return
    cost = picked.cost
    room = device.memory.free_bytes - cost.work_bytes
    count = max(2, math.ceil((cost.weight_bytes + cost.cache_bytes) / room)) if room > 0 else _MOST_DEVICES + 1
    if count <= _MOST_DEVICES:
        weights, cache = math.ceil(cost.weight_bytes / count), math.ceil(cost.cache_bytes / count)
        note = f"on each of {count} x {device.name}, with device_map='auto'"
        name_of_all = f"{picked.candidate}, {count} devices"
        yield WayToFit(name_of_all, weights, cache, weights + cache + cost.work_bytes, fits=True, note=note)
