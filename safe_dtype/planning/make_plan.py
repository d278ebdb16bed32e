"""From the facts to a plan: judge every candidate, then pick by the policy, or obey an order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ..errors import NoSafeDtypeError, StrictModeError
from ..facts import (
    BFLOAT16,
    CODES,
    COMPUTE,
    FLOAT16,
    FLOAT32,
    CheckpointFacts,
    DeviceFacts,
    Dtype,
    LearnedFailure,
    VerdictKind,
)
from .as_loaded import as_loaded
from .dense import dense
from .fewer_bits import coded_candidates, codes_wanted, enough_for, narrow_candidates, would_hold
from .judge import candidates, judge, to_be_measured
from .left_to_quantizer import left_to_quantizer
from .made_for import MadeFor
from .matmul_routes import product_verdict
from .mixed_dtypes import rounded_tensors
from .plan import Candidate, Decision, Ground, Plan
from .policy import Policy
from .rank import PlanningCase, merit, ranked, smallest_first
from .ways import ways_to_fit, ways_with_codes
from .worth_measuring import first_measurement

_KNOWN_TO_FAIL = (Ground.UNSUPPORTED, Ground.CRASHES)
# An order that drifts is rescued all the same: without, it would overflow.
_WITH_A_RESCUE = (None, Ground.MEMORY, Ground.DRIFT)
_SPREAD = "device_map='auto' puts the rest on other devices, in main memory or on disk, and every step waits for it"
_NO_CODES = (
    "linear weights are rounded on a CPU of this machine as they are read from safetensors files, in the dtype that they "
    "were saved in, under Linux; those of mixtures of experts are not"
)
_ON_DISK = "device_map='auto' leaves the rest on disk, and every step waits for it"
_WHOLE = "it may not load there; device_map='auto' would spread it"


def make_plan(
    device: DeviceFacts,
    checkpoint: CheckpointFacts,
    policy: Policy | str | None = None,
    *,
    ordered: Dtype | None = None,
    expected: Collection[Candidate] | None = None,
) -> Plan:
    """Return the plan for one checkpoint on one device.

    Args:
        device: What was measured on it, or what the table of priors knows of a device that is not here.
        checkpoint: What its files hold.
        policy: What the user wants, also as a text such as "prefer=memory"; None is the default.
        ordered: The dtype that the caller passed, if any.
        expected: Candidates whose range or rounding the first load measures, and which are taken to be well until then.
            None: on a device that nobody measured all that a load would measure there, else none.

    Raises:
        NoSafeDtypeError: If every candidate was rejected, and not for want of memory alone.
        StrictModeError: If in strict mode the ordered (else the saved) dtype is wrong, does not run here, or is not on the
            policy's ladder.
        PolicyError: If the policy cannot be read.
    """
    policy = Policy.of(policy) or Policy()
    if not device.measured:
        checkpoint = as_loaded(checkpoint, device)
    if expected is None:
        plan = make_plan(device, checkpoint, policy, ordered=ordered, expected=())
        return plan if device.measured else as_first_loaded(plan, device, checkpoint)
    lessons, checkpoint = checkpoint.lessons, replace(checkpoint, lessons=())
    plain = _made(device, checkpoint, policy, ordered, expected)
    if not lessons or checkpoint.quantization:
        return plain
    # What was learned of a model says nothing of the device: an order is obeyed, and the guard is there.
    obeyed = ordered or (_by_transformers(checkpoint) if policy.mode == "strict" else None)
    around = tuple(lesson for lesson in lessons if obeyed is None or lesson.dtype != obeyed.name)
    try:
        plan = _made(device, replace(checkpoint, lessons=around), policy, ordered, expected)
    except NoSafeDtypeError:  # better tried again than not loaded at all
        plan = plain
    lesson = next((lesson for lesson in lessons if lesson.dtype == plain.storage.name), None)
    return replace(plan, warnings=(_remembered(lesson, plan, plain), *plan.warnings)) if lesson else plan


def as_first_loaded(plan: Plan, device: DeviceFacts, checkpoint: CheckpointFacts) -> Plan:
    """Return what the first load comes to if everything that it measures comes out well.

    Args:
        plan: Made of the same facts, without a look at what nobody has measured yet.
        device: The facts that it was made from; so `checkpoint`.
        checkpoint: The same.
    """
    expected: tuple[Candidate, ...] = ()
    while more := first_measurement(plan, checkpoint):
        expected += more
        plan = make_plan(device, checkpoint, plan.policy, ordered=plan.ordered, expected=expected)
    return plan


def _remembered(lesson: LearnedFailure, plan: Plan, plain: Plan) -> str:
    """Return the warning that what would be planned, or is planned all the same, has failed before."""
    asked = ""
    if plan.storage == plain.storage:
        asked = f"{plan.storage} {'was asked for' if plan.ordered == plan.storage else 'is loaded'}, but "
        dtype, then = "it", f"Loading {plan.storage} anyway"
    else:
        dtype, then = str(plain.storage), f"Loading {plan.storage} instead"
    return (
        f"{asked}an earlier guarded run of {plan.source} failed in {dtype} here: {lesson.cause}. {then}. "
        "Next: if the cause is gone, forget it with `safe-dtype doctor --refresh`"
    )


def _made(
    device: DeviceFacts,
    checkpoint: CheckpointFacts,
    policy: Policy,
    ordered: Dtype | None,
    expected: Collection[Candidate],
) -> Plan:
    all_candidates = (*candidates(device, checkpoint), *narrow_candidates(device, checkpoint, policy, ordered))
    judged = [judge(candidate, device, checkpoint, policy, expected=expected) for candidate in all_candidates]
    decisions = tuple(one for one in judged if not _is_plain_by_another_name(one))
    grounds = {one.ground for one in decisions}
    fits = None in grounds or Ground.MEMORY not in grounds
    for codes in codes_wanted(policy, ordered, fits=fits):
        coded = tuple(
            judge(candidate, device, checkpoint, policy, expected=expected)
            for candidate in coded_candidates(codes, device, checkpoint, policy)
        )
        decisions += coded
        if would_hold(coded):
            break
    decisions = tuple(_beside_what_is_measured(one, decisions) for one in decisions)
    case = PlanningCase(device, checkpoint, policy, ordered, decisions)
    if checkpoint.quantization:
        return _quantizers_plan(case)
    if ordered or policy.mode == "strict":
        return _obey(ordered or _by_transformers(checkpoint), case)
    picked = _pick(case)
    return _plan(picked, case, _why(picked, case))


def _beside_what_is_measured(decision: Decision, others: Sequence[Decision]) -> Decision:
    """Return a decision on codes that nobody measured with the reason why, where the first load measures the same codes."""
    codes = decision.candidate.codes
    if codes is None or decision.ground is not Ground.ROUNDING:
        return decision
    pending = next((one.candidate for one in others if one.pending and one.candidate.codes == codes), None)
    if pending is None:
        return decision
    why = f"the first load measures {codes} computed in {pending.compute} alone"
    return replace(decision, reason=f"{decision.reason}: {why}")


def _is_plain_by_another_name(decision: Decision) -> bool:
    """Whether an accepted candidate of two dtypes would compute no product in its second one, which is never faster here."""
    candidate, routes = decision.candidate, decision.routes
    return (
        decision.accepted
        and candidate.storage != candidate.compute
        and routes is not None
        and routes.layout == "plain"
        and routes.cast_from is None
    )


def _by_transformers(checkpoint: CheckpointFacts) -> Dtype:
    """Return the dtype that transformers loads where nobody orders one: its config's, else that of the files."""
    return _claimed(checkpoint) or checkpoint.saved


def _claimed(checkpoint: CheckpointFacts) -> Dtype | None:
    return next((dtype for dtype in COMPUTE if dtype.name == checkpoint.config_dtype), None)


def _kept_as(wanted: Dtype, checkpoint: CheckpointFacts) -> str:
    return "as saved" if wanted == checkpoint.saved else "as its config says"


def _pick(case: PlanningCase) -> Decision:
    if case.accepted:
        return ranked(case)[0]
    if too_big := smallest_first(case):
        return too_big[0]
    raise NoSafeDtypeError(case.checkpoint.source, case.device.name, case.decisions)


def _why(picked: Decision, case: PlanningCase) -> str:
    if picked.ground is Ground.MEMORY:
        why = f"nothing that is right here fits whole, and this is the smallest: it {picked.reason}"
    else:
        why = merit(picked, case)
    return f"{why}; {_measured_later(picked, case)}" if picked.pending else why


def _measured_later(decision: Decision, case: PlanningCase) -> str:
    return to_be_measured(decision.candidate, case.checkpoint, is_spread=decision.ground is Ground.MEMORY)


def _obey(wanted: Dtype, case: PlanningCase) -> Plan:
    """Return the plan for an ordered dtype. In auto mode one that is known to fail is replaced, with a warning."""
    strict = case.policy.mode == "strict"
    kept_as = "" if case.ordered else _kept_as(wanted, case.checkpoint)
    decision = _ordered_decision(wanted, case)
    if decision is None:  # float8, int8: formats to store in
        raise StrictModeError(str(wanted), "no model computes in it", _would_be_obeyed(case), only_stores=True)
    if strict and decision.ground is Ground.LADDER:
        reason = f"{decision.reason}, and has to name it in strict mode"
        raise StrictModeError(str(wanted), reason, _would_be_obeyed(case), kept_as=kept_as)
    if strict and decision.ground in (*_KNOWN_TO_FAIL, Ground.WRONG):
        raise StrictModeError(str(wanted), decision.reason, _would_work(case), kept_as=kept_as)
    if not strict and decision.ground in _KNOWN_TO_FAIL:
        picked = _pick(case)
        text = f"{wanted} was asked for, and {case.device.name} cannot: {decision.reason}. "
        return _plan(picked, case, _why(picked, case), f"{text}Loading {picked.candidate} instead")
    why = f"{kept_as}, in strict mode" if kept_as else "as asked for"
    if decision.pending:
        why = f"{why}; {_measured_later(decision, case)}"
    return _plan(decision, case, why, *_second_thoughts(decision, case))


def _ordered_decision(wanted: Dtype, case: PlanningCase) -> Decision | None:
    """Return the decision on an ordered dtype: weights and activations in it, and products as strict mode wants."""
    stored = [one for one in case.decisions if one.candidate.storage == wanted]
    plain = next((one for one in stored if one.candidate.compute == wanted), None)
    if case.policy.mode == "strict":
        return plain
    # The order is for what is stored; in which dtype products are computed on the way is ours.
    return next((one for one in ranked(case) if one in stored), plain)


def _second_thoughts(decision: Decision, case: PlanningCase) -> tuple[str, ...]:
    candidate, device = decision.candidate, case.device
    whose = "was asked for" if case.ordered else f"is kept, {_kept_as(candidate.storage, case.checkpoint)}"
    asked = f"{candidate} {whose}, and on {device.name}"
    verdict = product_verdict(candidate.storage, candidate.compute, device, decision.routes, candidate.codes)
    if decision.ground in (Ground.WRONG, Ground.RANGE):
        return (f"{asked} its results may be wrong: {decision.reason}",)
    if decision.ground is Ground.DRIFT:
        return (f"{asked} its results are further off than the policy allows: {decision.reason}",)
    if verdict.kind is VerdictKind.SLOW:
        return (f"{asked} it is slow: {verdict.reason}",)
    return ()


def _would_work(case: PlanningCase) -> tuple[str, ...]:
    return tuple(str(one.candidate) for one in case.accepted)


def _would_be_obeyed(case: PlanningCase) -> tuple[str, ...]:
    """Return the dtypes that an order gets here, the accepted ones first: float16 is rescued where it has to be."""
    refused = (*_KNOWN_TO_FAIL, Ground.WRONG, *[Ground.LADDER] * (case.policy.mode == "strict"))
    orders = sorted(case.decisions, key=lambda one: not one.accepted)
    return tuple(dict.fromkeys(one.candidate.storage.name for one in orders if one.ground not in refused))


def beyond_texts(source: str, names: Sequence[str]) -> str:
    """Return the warning of a model in float16 some modules of which no text reaches."""
    seen = f"float16 was measured on a text, which does not reach {', '.join(names)}"
    return f"{source}: {seen}: look at the results, or run it in float32"


def _plan(picked: Decision, case: PlanningCase, why: str, *warnings: str) -> Plan:
    device, checkpoint, candidate = case.device, case.checkpoint, picked.candidate
    strict = case.policy.mode == "strict"
    too_big = picked.ground is Ground.MEMORY
    is_placed = device.memory.limited_by in ("device_map", "the caller")
    if too_big:
        spread = _ON_DISK if device.is_of_main_memory else _SPREAD
        what = _WHOLE if is_placed else f"strict mode leaves it whole: {_WHOLE}" if strict else spread
        warnings += (f"{checkpoint.source} {picked.reason} on {device.name}: {what}",)
    if not device.measured and not device.memory.total_bytes:
        warnings += (
            f"how much memory {device.name} has is not known, nor whether the model fits: name it with the device, "
            f"as in --device '{device.name} 24 GB'",
        )
    half = checkpoint.half if candidate.storage == FLOAT16 and not strict else None
    if half and half.unseen and not half.recipe:  # what a recipe says of it is to be proven
        warnings += (beyond_texts(checkpoint.source, half.unseen),)
    warnings += _without_codes_asked_for(picked, case)
    rescue = half if picked.ground in _WITH_A_RESCUE and candidate.codes is None else None
    later = () if strict else tuple(one.candidate.storage for one in ranked(case))
    return Plan(
        source=checkpoint.source,
        device=device.device,
        device_name=device.name,
        measured=device.measured,
        saved=checkpoint.saved,
        storage=candidate.storage,
        compute=candidate.compute,
        reason=why,
        policy=case.policy,
        ladder=tuple(dict.fromkeys((candidate.storage, *later))),
        decisions=case.decisions,
        attention=picked.attention,
        device_map="auto" if too_big and not strict and not is_placed else None,
        ordered=case.ordered,
        routes=picked.routes,
        codes=candidate.codes,
        rescale=rescue.rescale if rescue else None,
        islands=rescue.islands if rescue else (),
        stored=rescue is not None and rescue.stored,
        recipe=rescue.recipe if rescue else "",
        warnings=(*warnings, *checkpoint.warnings),
        ways=ways_to_fit(picked, case.decisions, device, checkpoint, case.policy) if too_big else (),
        has_tokens=checkpoint.takes_tokens,
        takes=checkpoint.takes,
        rounded=None if checkpoint.quantization else rounded_tensors(candidate.storage, checkpoint),
        made_for=MadeFor.of(checkpoint).on(device),
        dequantized=checkpoint.file_format == "dequantized",
    )


def _without_codes_asked_for(picked: Decision, case: PlanningCase) -> tuple[str, ...]:
    """Return the warning that weights are not rounded to codes, or nobody knows what that does, although it was asked for."""
    asked = case.policy.codes
    if asked is None or case.checkpoint.quantization:
        return ()
    source, coded = case.checkpoint.source, [one for one in case.decisions if one.candidate.codes in CODES]
    if picked.candidate.codes in CODES:
        measured = case.checkpoint.drift(picked.candidate.storage, picked.candidate.compute, picked.candidate.codes)
        if measured is None or not measured.problem:
            return ()
        return (
            f"{source}: {asked} was asked for, and what it does to the output was not measured: {measured.problem}",
        )
    ordered, saved = case.ordered, case.checkpoint.saved
    if coded and ordered is not None and ordered != saved:
        why = f"dtype={ordered} was given, and {asked} is held beside the dtype of the files alone, which is {saved}"
        return (
            f"{source}: {asked} was asked for, and {picked.candidate} is loaded: {why}. Next: leave dtype= out for "
            f"{asked}, or the policy's {asked} for {ordered}",
        )
    why = coded[0].reason if coded else _NO_CODES
    limit = enough_for(coded, case.checkpoint)
    next_step = "" if limit is None else f". Next: `--policy {asked},max_drift={limit:g}` takes it"
    return (f"{source}: {asked} was asked for, and {picked.candidate} is loaded: {why}{next_step}",)


def _quantizers_plan(case: PlanningCase) -> Plan:
    # AWQ, GPTQ, FBGEMM, ... each has a rule of its own for the dtype beside the codes (transformers' update_dtype).
    device, checkpoint = case.device, case.checkpoint
    beside = case.ordered or checkpoint.loaded_as or _by_transformers(checkpoint)
    candidate = Candidate(beside, beside) if beside in COMPUTE else Candidate(FLOAT32, FLOAT32)
    left = left_to_quantizer(judge(candidate, device, checkpoint, case.policy), device, checkpoint)
    # Where its codes may be offloaded to is a rule of its own as well: nothing is spread unasked.
    plan = _plan(replace(left.decision, ground=None), case, left.reason, *left.warnings)
    ways = () if left.decision.accepted else ways_with_codes(left.decision, case, _without_codes(case))
    decisions, ladder = (left.decision,), (candidate.storage,)
    return replace(plan, decisions=decisions, ladder=ladder, quantization=checkpoint.quantization, ways=ways)


def _without_codes(case: PlanningCase) -> tuple[Plan, CheckpointFacts] | None:
    """Return the plan of what a quantized checkpoint was made from, and its facts; None where its codes are not known."""
    checkpoint = case.checkpoint
    original = dense(checkpoint, _claimed(checkpoint) or BFLOAT16)
    if original is None:
        return None
    wanted = replace(case.policy, mode="auto", ladder=())
    try:
        plan = make_plan(case.device, original, wanted, expected=())
    except NoSafeDtypeError:
        return None
    return as_first_loaded(plan, case.device, original), original
