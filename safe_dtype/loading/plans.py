"""From a request to its plan: ask the devices, read the checkpoint, hand both to the pure planner."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice

from ..checkpoints import read_checkpoint, read_state_dict
from ..devices import DEFAULT_OPS, DEFAULT_WIDTHS, facts_of, memory_of
from ..errors import ConflictError
from ..facts import CheckpointFacts, DeviceFacts, MemoryFacts
from ..planning import Plan, Policy, combine, make_plan
from .request import Request

logger = logging.getLogger(__name__)

_WIDTHS_PROBED = 3  # the shapes that hold most weights; more of them take longer to probe and change no plan


def plan_request(request: Request, policy: Policy | str | None = None) -> Plan:
    """Return the plan for one call of `from_pretrained`. Reads headers and configs, never weights.

    Raises:
        CheckpointError: If the checkpoint cannot be found or read.
        PlanError: If no dtype does.
        PolicyError: If `policy` is a text that cannot be read.
    """
    ordered = request.ordered
    checkpoint = _checkpoint(request)
    device = device_for(request, checkpoint)
    parsed = Policy.parse(policy) if isinstance(policy, str) else policy
    plan = make_plan(device, checkpoint, parsed, ordered=ordered)
    logger.info("%s: %s on %s, %s", plan.source, plan.storage, plan.device_name, plan.reason)
    return plan


def check_agreement(plan: Plan, request: Request, policy: Policy | str | None) -> None:
    """Raise where the caller passes a plan and, beside it, something that contradicts it.

    Raises:
        ConflictError: If `dtype`, `attn_implementation` or `policy` says something else than the plan.
    """
    if policy is not None and (Policy.parse(policy) if isinstance(policy, str) else policy) != plan.policy:
        raise ConflictError("policy", str(policy), str(plan.policy))
    ordered = request.ordered
    if ordered is not None and ordered != plan.storage and not plan.quantization:
        raise ConflictError("dtype", str(ordered), str(plan.storage))
    attention = request.arguments.get("attn_implementation")
    if plan.attention and attention not in (None, plan.attention):
        raise ConflictError("attn_implementation", str(attention), plan.attention)


def device_for(request: Request, checkpoint: CheckpointFacts) -> DeviceFacts:
    """Measure, or remember, every device that will compute, at the checkpoint's own widths."""
    ops = (*DEFAULT_OPS, "conv2d") if checkpoint.has_conv2d else DEFAULT_OPS
    widths = tuple(islice(checkpoint.widths(), _WIDTHS_PROBED)) or DEFAULT_WIDTHS
    max_memory = request.arguments.get("max_memory")
    found = combine([facts_of(one, widths=widths, ops=ops, max_memory=max_memory) for one in request.devices])
    return _with_main_memory(found) if request.spreads and found.device != "cpu" else found


def _with_main_memory(device: DeviceFacts) -> DeviceFacts:
    # device_map="auto" spills into main memory by itself, so nothing is lost by counting it.
    own, main = device.memory, memory_of("cpu")
    both = MemoryFacts(own.total_bytes + main.total_bytes, own.free_bytes + main.free_bytes, own.limited_by)
    return replace(device, memory=both)


def _checkpoint(request: Request) -> CheckpointFacts:
    config, state_dict = request.arguments.get("config"), request.arguments.get("state_dict")
    if state_dict is not None:
        facts = read_state_dict(state_dict, config)
        facts = replace(facts, source=str(request.source)) if request.source else facts
    else:
        facts = read_checkpoint(request.where, config=config)
    return replace(facts, quantization=request.quantizer) if request.quantizer else facts
