"""Whether a plan that the caller passes agrees with everything else in the call."""

from __future__ import annotations

import logging
from contextlib import suppress

from ..devices import detect_one
from ..errors import CheckpointError, ConflictError, NoSuchDeviceError, StalePlanError
from ..facts import DeviceFacts
from ..planning import MadeFor, Plan, Policy, combine
from .config_order import with_order_of_config
from .plan_request import checkpoint_for, readable
from .request import Request, where_tensors_are_made

logger = logging.getLogger(__name__)


def check_agreement(plan: Plan, request: Request, policy: Policy | str | None) -> None:
    """Raise where the caller passes a plan and, beside it, something that contradicts it.

    Raises:
        ConflictError: If `dtype`, `attn_implementation` or `policy` says something else than the plan.
        StalePlanError: If the plan was made for another checkpoint, another device or other software.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan= takes a Plan, not {plan!r}. Next: make one with safe_dtype.make_plan, or pass dtype=.")
    if policy is not None and Policy.of(policy) != plan.policy:
        raise ConflictError("policy", str(policy), str(plan.policy))
    with readable(request):
        ordered = with_order_of_config(request).ordered
    if ordered is not None and ordered != plan.storage and not plan.quantization:
        raise ConflictError("dtype", str(ordered), str(plan.storage))
    attention = request.arguments.get("attn_implementation")
    if plan.attention and attention not in (None, plan.attention):
        raise ConflictError("attn_implementation", str(attention), plan.attention)
    if plan.made_for is not None:
        _check_made_for(plan.made_for, plan, request)


def _check_made_for(planned: MadeFor, plan: Plan, request: Request) -> None:
    if contradictions := list(planned.contradictions(_here(plan, request))):
        raise StalePlanError(
            " and ".join(dict.fromkeys(one.what for one in contradictions)),
            " and ".join(one.here for one in contradictions),
            " and ".join(one.planned for one in contradictions),
        )


def _here(plan: Plan, request: Request) -> MadeFor:
    """Return what the call is for. What is not known is left empty: the load itself raises what is wrong with it."""
    here = MadeFor(str(request.source))
    try:
        here = MadeFor.of(checkpoint_for(request))
    except CheckpointError as exc:
        logger.info("%s: whether the plan was made for it is not known: %s", request.source, exc.problem)
    try:
        return here.on(_device(plan, request))
    except NoSuchDeviceError as exc:  # "meta", say
        logger.info("%s: whether the plan was made for this device is not known: %s", request.source, exc)
        return here


def _device(plan: Plan, request: Request) -> DeviceFacts:
    """Return what will compute, as far as the call tells; else the device of the plan, where there is one of its name."""
    # Without these, the caller may move the model anywhere, and the plan may well be for that place.
    tells_where = request.arguments.get("device_map") is not None or where_tensors_are_made().type != "cpu"
    if plan.measured and not tells_where:
        with suppress(NoSuchDeviceError):
            return combine([detect_one(one) for one in plan.device.split(",")])
    return combine([detect_one(one) for one in request.devices])
