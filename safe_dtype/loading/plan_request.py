"""From a request to its plan: measure the devices, read the checkpoint, and hand both to the pure planner."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import partial
from itertools import islice
from typing import Literal

import torch
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from transformers.utils.import_utils import is_kernels_available, is_triton_available

from ..checkpoints import read_checkpoint, read_state_dict
from ..checkpoints.config import as_dict, without_dtypes
from ..devices import DEFAULT_OPS, DEFAULT_WIDTHS, facts_of, lessons_for, routes_of
from ..errors import CheckpointError, NoSafeDtypeError, SafeDtypeError
from ..facts import BFLOAT16, CODES, COMPUTE, FLOAT16, CheckpointFacts, DeviceFacts, Dtype, MemoryFacts
from ..planning import Ground, Plan, Policy, combine, make_plan
from ..planning.as_loaded import as_loaded
from .code_rates import may_round_to, with_code_rates
from .config_order import passed_config, with_order_of_config
from .meeting import Facts, Meeting
from .narrow_rates import may_be_narrow, with_narrow_rates
from .placement import with_memory_as_placed
from .request import Request, all_accelerators
from .trials.float16 import plan_with_half
from .trials.rounding import plan_with_drifts
from .trials.saved_rescale import with_stored

logger = logging.getLogger(__name__)

_WIDTHS_PROBED = 3  # the shapes that hold most weights; more of them take longer to probe and change no plan

# A model this small runs the default workload in a fraction of a second in any dtype (0.4 s for a million parameters
# in emulated bfloat16 on 2 cores), which is what a probe of its own widths would take. All of them share one.
_SMALL = 2**20  # parameters
_SMALL_WIDTHS = ((256, 256),)

# From here on it matters how products are computed; below, a step takes about a millisecond whatever is done.
_ROUTED_FROM = 2**24  # parameters

Drifts = Literal["never", "ignored", "remembered", "measured"]

# Without a look at activations; with the error that it is if nobody measures an unmeasured float16 that stands in.
FirstPlan = tuple[Plan, NoSafeDtypeError | None]

_SPLIT_BY_RANKS = ("distributed_config", "tp_plan", "tp_size", "device_mesh")


def plan_request(
    request: Request,
    policy: Policy | str | None = None,
    *,
    drifts: Drifts = "remembered",
    stored: bool = True,
    device: DeviceFacts | None = None,
    meeting: Meeting | None = None,
) -> Plan:
    """Return the plan for one call of `from_pretrained`. Reads headers and configs, never weights.

    Where a much faster plan depends on what rounding does to the model, `drifts` tells whether to look: "measured" loads
    and runs the model, and remembers what it found; "remembered" only looks that up, and plans for what a load would
    come to if all is well that it would measure (`Plan.pending`); "ignored" rounds nothing but for an order, whose range is
    measured; "never" runs nothing at all, as for a model that is none of transformers.
    `stored` tells whether to believe a rescue that was saved beside the weights: nothing is measured then.
    `device` is one that is not here, known by the table of priors; None: those that the request names.
    `meeting` is where the ranks of a job agree, which all plan from the same facts; None: this process plans alone.

    Raises:
        CheckpointError: If the checkpoint cannot be found or read.
        PlanError: If no dtype is accepted.
        PolicyError: If `policy` is a text that cannot be read.
    """
    with readable(request):
        request = with_order_of_config(request)
    ordered = request.ordered
    checkpoint = checkpoint_for(request)
    is_here = device is None and meeting is None
    if device is not None:
        checkpoint = as_loaded(checkpoint, device)
    elif meeting is None:
        device, checkpoint = _facts_here(request, checkpoint)
    else:
        device, checkpoint = meeting.agreed(checkpoint, partial(_facts_here, request, checkpoint))
    parsed = Policy.of(policy)
    rounds = drifts != "never" and (
        drifts != "ignored"
        or ordered == FLOAT16
        or (parsed is not None and (FLOAT16 in parsed.ladder or parsed.codes is not None))
    )
    if stored and (not is_one_of_many(request) or (meeting is not None and not is_split(request))):
        checkpoint = with_stored(checkpoint, request, parsed, rounds=rounds)
    planned = partial(_first_plan, checkpoint=checkpoint, policy=parsed, ordered=ordered, rounds=rounds)
    plan, refused = planned(device)
    if is_here and not is_one_of_many(request):
        device, (plan, refused) = _with_rates_of_fewer_bits((plan, refused), planned, request, device, checkpoint)
    if plan.device_map and _could_have_more(request):
        everywhere = Request(request.source, {**request.arguments, "device_map": plan.device_map})
        spread = plan_request(everywhere, policy, drifts=drifts, stored=stored)
        return replace(spread, device_map=plan.device_map, warnings=spread.warnings or plan.warnings)
    # Who orders float16, or names it in a ladder, wants results as well, and a model that overflows has none.
    if rounds:
        trial = partial(_with_trials, plan, request, device, checkpoint, parsed, drifts)
        plan = trial() if meeting is None else meeting.by_one(plan, device, checkpoint, trial)
    _require_no_stand_in(plan, refused)
    if plan.device_map and request.spreads:
        plan = replace(plan, device_map=request.arguments["device_map"])
    if meeting is not None:
        meeting.prove(plan)
    logger.debug("%s", plan.summary)
    return plan


def _first_plan(
    device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy | None, ordered: Dtype | None, *, rounds: bool
) -> FirstPlan:
    """Return the plan without a look at activations.

    Where nothing but an unmeasured float16 is on the ladder, that stands in, with the error that it is if nobody measures it.
    """
    try:
        return make_plan(device, checkpoint, policy, ordered=ordered, expected=()), None
    except NoSafeDtypeError as refused:
        if not rounds or (str(FLOAT16), Ground.RANGE) not in {
            (str(decision.candidate), decision.ground) for decision in refused.decisions
        }:
            raise
        plan = make_plan(device, checkpoint, policy, ordered=FLOAT16, expected=())
        return replace(plan, ordered=ordered), refused


def _require_no_stand_in(plan: Plan, refused: NoSafeDtypeError | None) -> None:
    if refused is not None and plan.chosen is not None and not plan.chosen.accepted:
        raise refused


def _with_rates_of_fewer_bits(
    first: FirstPlan,
    planned: Callable[[DeviceFacts], FirstPlan],
    request: Request,
    device: DeviceFacts,
    checkpoint: CheckpointFacts,
) -> tuple[DeviceFacts, FirstPlan]:
    """Return `device` with what products by weights in fewer bits reach, where it may be worth it to hold them so; and its plan.

    Each is looked at in the plan with those before it: 16 bit of float32 may need no rounding, and codes of fewer bits are for
    what has no room otherwise.
    """
    widths = _widths_to_probe(checkpoint)
    if may_be_narrow(first[0], request, checkpoint):
        device = with_narrow_rates(device, checkpoint, widths)
        first = planned(device)
    for codes in CODES:
        if may_round_to(codes, first[0], request, checkpoint):
            device = with_code_rates(codes, device, checkpoint, widths)
            first = planned(device)
    return device, first


def _facts_here(request: Request, checkpoint: CheckpointFacts) -> Facts:
    """Return what was measured of the request's devices, and the checkpoint as it is loaded there."""
    device = device_for(request, checkpoint)
    loaded = as_loaded_here(checkpoint, device)
    if loaded is not checkpoint:  # other shapes and dtypes are multiplied
        checkpoint, device = loaded, device_for(request, loaded)
    lessons = lessons_for(request.devices, checkpoint.source, checkpoint.model_type)
    return device, replace(checkpoint, lessons=lessons)


def _with_trials(
    plan: Plan, request: Request, device: DeviceFacts, checkpoint: CheckpointFacts, policy: Policy | None, drifts: Drifts
) -> Plan:  # fmt: skip
    """Return `plan`, or what it comes to with what was measured of the checkpoint in other dtypes than its own."""
    plan, checkpoint, expected = plan_with_half(
        plan, request, device, checkpoint, policy, measure=drifts != "remembered"
    )
    if drifts in ("ignored", "never") and not plan.policy.codes:
        return plan
    measure = drifts != "remembered"
    return plan_with_drifts(plan, request, device, checkpoint, policy, measure=measure, expected=expected)


def _could_have_more(request: Request) -> bool:
    """Whether there are accelerators beside the one that is planned for, and the caller has not said where to go."""
    return request.arguments.get("device_map") is None and len(all_accelerators()) > len(request.devices)


def as_loaded_here(checkpoint: CheckpointFacts, device: DeviceFacts) -> CheckpointFacts:
    """Return the facts of what transformers loads in this process, where it asks for GPUs whatever the model's device."""
    return as_loaded(checkpoint, device, keeps_codes=_keeps_codes_here(checkpoint.quantization))


def _keeps_codes_here(method: str | None) -> bool:
    """Whether transformers' quantizers for float8 and MXFP4 leave the codes as they are, by their own conditions."""
    has_xpu = torch.xpu.is_available()
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    if method == "mxfp4":
        triton = is_triton_available("3.5.0") if has_xpu else is_triton_available("3.4.0")
        return (has_xpu or capability >= (7, 5)) and triton and is_kernels_available()
    if method == "metal":
        return torch.backends.mps.is_available()
    return has_xpu or capability >= (8, 9)


def device_for(request: Request, checkpoint: CheckpointFacts) -> DeviceFacts:
    """Return the facts of the devices that will compute, at the checkpoint's own widths: measured now or remembered."""
    ops = (*DEFAULT_OPS, "conv2d") if checkpoint.has_conv2d else DEFAULT_OPS
    widths = _widths_to_probe(checkpoint)
    max_memory = request.arguments.get("max_memory")
    device = combine(
        [
            facts_of(name, widths=widths, ops=ops, routes=_routes_to_probe(checkpoint, name), max_memory=max_memory)
            for name in request.devices
        ]
    )
    if is_one_of_many(request):
        # What falls to this rank is not known here, and device_map is not for models that ranks share.
        return replace(device, memory=MemoryFacts(0, 0, "ranks"))
    return with_memory_as_placed(device, request, checkpoint)


def _routes_to_probe(checkpoint: CheckpointFacts, device: str) -> tuple[tuple[Dtype, str], ...]:
    if checkpoint.parameters < _ROUTED_FROM or checkpoint.quantization:
        return ()
    return routes_of(checkpoint.saved if checkpoint.saved in COMPUTE else BFLOAT16, device)


def _widths_to_probe(checkpoint: CheckpointFacts) -> tuple[tuple[int, int], ...]:
    if checkpoint.parameters <= _SMALL:
        return _SMALL_WIDTHS
    return tuple(islice(checkpoint.widths(), _WIDTHS_PROBED)) or DEFAULT_WIDTHS


def is_one_of_many(request: Request) -> bool:
    """Whether several processes load this model, each its part or its copy."""
    if request.arguments.get("device_map") is not None:
        return False
    ranks = os.environ.get("WORLD_SIZE", "")  # torchrun, accelerate launch, deepspeed
    return is_split(request) or (ranks.isdecimal() and int(ranks) > 1)


def is_split(request: Request) -> bool:
    """Whether each of several processes loads a part of this model only, by what the call and the launch say."""
    return is_split_on_loading(request) or is_deepspeed_zero3_enabled() or is_fsdp_enabled()


def is_split_on_loading(request: Request) -> bool:
    """Whether the call itself asks for a part on each rank, as with `tp_plan`: the ranks meet inside it."""
    return any(request.arguments.get(name) is not None for name in _SPLIT_BY_RANKS)


def checkpoint_for(request: Request) -> CheckpointFacts:
    """Read what the files of the request's checkpoint hold, headers and configs.

    Raises:
        CheckpointError: If it cannot be found or read.
    """
    state_dict = request.arguments.get("state_dict")
    trusted = bool(request.arguments.get("trust_remote_code"))
    with readable(request):
        config = passed_config(request)
        if config is not None and request.ordered is not None:
            # An Auto class writes the ordered dtype into the config before it hands it on: that is no claim.
            config = without_dtypes(as_dict(config))
        if state_dict is not None:
            facts = read_state_dict(state_dict, config)
            facts = replace(facts, source=str(request.source)) if request.source else facts
        else:
            facts = read_checkpoint(request.where, config=config, trust_remote_code=trusted)
        _check_numbers(facts)
        if not request.quantizer:
            return facts
        return replace(facts, quantization=request.quantizer, is_to_dequantize=request.dequantizes)


def _check_numbers(facts: CheckpointFacts) -> None:
    """Raise TypeError where a config holds no number where a count belongs."""
    for count in (facts.vocab_size, facts.hidden_size, *astuple(facts.cache)):
        if not isinstance(count, int | float):
            raise TypeError(f"{count!r} is no number")


@contextmanager
def readable(request: Request) -> Iterator[None]:
    """Turn what a config or an argument of unexpected content raises into our error."""
    try:
        yield
    except SafeDtypeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as exc:
        raise CheckpointError(str(request.source), f"its config or arguments cannot be read ({exc!r})") from exc
