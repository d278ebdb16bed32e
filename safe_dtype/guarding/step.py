"""One guarded step: run it, look at what it returns; where it failed bring everything back, cure, and run it again."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ..errors import CannotResumeError, DeviceLostError, NoDtypeLeft, StrictModeError
from ..facts import FLOAT32
from ..models.cast_back import as_they_are
from ..models.casting import FLOATS, cast, cast_cache, dtypes_of, is_finite
from ..models.recast import main_dtype
from ..rescaling import departures
from .blame import Blame, module_raising, module_spoiling, name_of
from .compute_dtype import as_planned, first_step
from .deferred.attempt import attempt, attempt_at_once, judged
from .deferred.judged_later import UnreadStep
from .diagnosis import Findings, ModuleCall, is_raised_by_a_hook, leaves_on_purpose
from .diagnosis.autocast_trial import cast_keys, try_without_autocast
from .diagnosis.examine import examine
from .diagnosis.inputs_trial import try_with_inputs_cast
from .diagnosis.lost_device import loses_a_device, raise_if_lost
from .diagnosis.module_call import FinishedCall
from .diagnosis.own_values import (
    float32_agrees,
    has_own_states,
    is_known_to_be_own,
    remember_own_step,
    spoils_other_items,
    stays_in_float32,
    without_own_values,
)
from .diagnosis.trouble import Call, Recovery, StepResult, Trouble
from .events import changing
from .failure import Failure
from .incident import Incident
from .model_lock import Turn
from .output_checks import (
    numbers_of,
    spoiled_rows,
)
from .recover import TriedRemedies, cure, is_passed_over, keep_lessons, mention_spread, note_refusal, pass_over
from .shared_steps import is_spread
from .state import CALL, Guard, here
from .step_snapshot import StepSnapshot
from .written.written_places import hand_back


class RestartNeededError(Exception):
    """The model was cured, and the step cannot be run again: the generation around it must begin anew."""

    def __init__(self, tried: TriedRemedies) -> None:
        super().__init__()
        self.tried = tried


# After these the model is as it should be, and the next call finds it so.
CHANGES_STAY = (RestartNeededError, CannotResumeError, DeviceLostError, Warning)


def guarded_step(
    guard: Guard, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
    entry: str = CALL,
) -> Any:  # fmt: skip
    """Call `forward(*args, **kwargs)`, a call of the guarded model or of a model inside it, until it comes out right.

    What runs in it is a part of this step, see `is_covered`.

    Args:
        guard: The guard.
        module: The model that is called.
        forward: What to call: the model's own call or method, or a compiled form of it.
        args: Its arguments.
        kwargs: Its keyword arguments.
        entry: The name of the method that was called.

    Raises:
        NoDtypeLeft: If every remedy failed.
        StrictModeError: If it failed in strict mode.
        CannotResumeError: If the model was cured, and the call cannot be repeated.
        DeviceLostError: If the device is lost.
    """
    turn = Turn()  # one for all attempts and changes, so that all end with it
    snapshot: StepSnapshot | None = None  # of the state before the latest attempt
    tried: TriedRemedies | None = None
    plain, own = forward, (args, kwargs)
    thread = here.__dict__  # found once for all that follows: that of a thread takes longer than another
    around = thread.get("running", ())
    thread["running"] = (*around, (guard, module, entry))
    try:
        while True:
            guard.lock.begin_step(turn)
            try:
                if guard.version or guard.departures != departures.count:
                    # From what the caller gave: what was rounded for a narrower dtype is not given to a wider one.
                    args, kwargs = _up_to_date(guard, *own, tried)
                version = guard.version
                kind = (module, entry, len(args), *kwargs)
                written = guard.written.get(kind) or first_step(guard)
                snapshot = StepSnapshot(guard.places, args, kwargs, module, written)
                forward = as_planned(guard, plain, args, kwargs)
                output, trouble = attempt(guard, forward, args, kwargs)
            finally:
                guard.lock.end_step(turn)
            if trouble is None or (
                trouble := judged(guard, trouble, output, UnreadStep(plain, *own, snapshot, version), written)
            ) is None:  # fmt: skip
                if not written.is_settled:
                    guard.written[kind] = written = written.and_then(snapshot.written())
                break
            tried = tried or _nothing_tried(trouble, output)
            call = Call(guard, module, forward, args, kwargs, snapshot, entry)
            recovery = _after_trouble(call, tried, trouble, output, version, turn)
            if recovery.result is StepResult.PASSED:
                output = recovery.output
                break
            if recovery.result is not StepResult.CURED:
                return _ended(recovery, tried, trouble, call, output, (plain, *own))
            del output
        if written.inputs:  # into copies of inputs, it may be
            hand_back(written.inputs, own, (args, kwargs))
        if tried is not None:
            keep_lessons(guard, tried)
        guard.count_step(output, thread.get("nets", ()))
    except BaseException as exc:
        guard.lock.end(turn)
        _leave(guard, exc, snapshot, tried)
        raise
    finally:
        thread["running"] = around
    return output


def _after_trouble(
    call: Call, tried: TriedRemedies, trouble: Trouble, output: Any, version: int, turn: Turn
) -> Recovery:
    """Change the model, with everybody else waiting, so that the step comes out right; `version` is what it ran with."""
    guard = call.guard
    if guard.shared is not None:
        return guard.shared.settle(call, trouble, output)
    if is_spread(guard.model()):
        mention_spread(guard)
        return Recovery(StepResult.LET_BE)
    with changing(guard, turn):
        # While this thread waited, another may have cured the model; or the call itself had it changed.
        guard.notice_change()
        if guard.version != version and call.snapshot.roll_back(recast=True):
            return Recovery(StepResult.CURED)
        # A model compiled around its guard has a compiler follow all that runs in it: not what is done to cure it.
        recovery: Recovery = torch.compiler.disable(_recover)(  # type: ignore[no-untyped-call]
            guard, tried, trouble, call, output
        )
        return recovery


def _nothing_tried(trouble: Trouble, output: Any) -> TriedRemedies:
    tried = TriedRemedies(trouble.error)
    tried.rows = spoiled_rows(numbers_of(output))
    return tried


def _ended(
    recovery: Recovery, tried: TriedRemedies, trouble: Trouble, call: Call, output: Any,
    own: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]],
) -> Any:  # fmt: skip
    """Return or raise what the caller gets of a step that was not cured; `own` is what it has called, and with what."""
    if trouble.error is not None:
        raise tried.error_for(trouble.error)
    if recovery.result is StepResult.LET_BE:
        return output
    if recovery.result is StepResult.OWN:
        forward, args, kwargs = own
        call = replace(call, forward=as_planned(call.guard, forward, args, kwargs), args=args, kwargs=kwargs)
    # Handed on as it is. The state was brought back, so the step is made once more.
    repeated = call.forward(*call.args, **call.kwargs)
    if recovery.result is StepResult.OWN:
        remember_own_step(call, repeated)
        call.guard.count_step(repeated, here.nets)
    return repeated


def _leave(guard: Guard, exc: BaseException, snapshot: StepSnapshot | None, tried: TriedRemedies | None) -> None:
    """Bring back what the step changed, and what remedies did that have not helped; `exc` ends the call.

    Raises:
        DeviceLostError: In place of `exc`, if that tells that the process has lost a device of the model.
    """
    # The call around this one, of the same model, may still be cured of a foreign error.
    is_outermost = all(one is not guard for one, *_ in here.__dict__.get("running", ())[:-1])
    if is_outermost or isinstance(exc, (StrictModeError, NoDtypeLeft)):
        note_end(guard, exc)
    raise_if_lost(guard, exc)
    has_changed = tried is not None and tried.has_changed
    is_wanted = leaves_on_purpose(exc) or (tried is None and is_raised_by_a_hook(exc))
    if snapshot is None or isinstance(exc, CHANGES_STAY) or (not has_changed and is_wanted) or loses_a_device(exc):
        return
    with suppress(RuntimeError):  # the device may be lost, and the exception of another matter
        snapshot.roll_back()
    if tried is not None and has_changed:
        with changing(guard):
            tried.take_back(guard, ended_by=exc)


def note_end(guard: Guard, exc: BaseException) -> None:
    """Keep for the report that `exc` ended a call.

    Not the caller's own way out, nor a step that begins anew, nor a lost device: it is no matter of this model, and remembered
    of the device where a dtype is to blame.
    """
    if not isinstance(exc, RestartNeededError) and not leaves_on_purpose(exc) and not loses_a_device(exc):
        note_refusal(guard, exc)


def main_dtype_of(guard: Guard) -> torch.dtype | None:
    """Return the dtype of most of the guarded model's numbers."""
    model = guard.model()
    return main_dtype(model) if model is not None else None


def _recover(guard: Guard, tried: TriedRemedies, trouble: Trouble, call: Call, output: Any) -> Recovery:
    """Bring everything back and cure the model, where this is a matter of dtypes.

    Raises:
        RestartNeededError: If the call cannot be repeated, and a generation around it can begin anew.
        CannotResumeError: If nothing around it can.
    """
    since = time.perf_counter()
    model = guard.model()
    error = trouble.error
    handed_on = _handed_on(trouble, call, output)
    if model is None or handed_on is not None:
        return handed_on or Recovery(StepResult.LET_BE)
    back = call.snapshot.roll_back()
    poisoned = error is None and not is_finite(call.arguments) and not spoils_other_items(call, output)
    if (
        back
        and not poisoned
        and (
            (passed := try_without_autocast(model, call, trouble, since, attempt_at_once)) is not None
            or (passed := try_with_inputs_cast(model, call, trouble, attempt_at_once)) is not None
        )
    ):
        return passed
    if error is not None:
        examined = _by_experiment(model, trouble, call, can_repeat=back)
    else:
        examined = _by_numbers(model, trouble, call, output, can_repeat=back and not poisoned)
        back = back and (isinstance(examined, Recovery) or call.snapshot.roll_back())
    if isinstance(examined, Recovery):
        return examined
    failure, blame, findings = examined
    if failure is None:
        return Recovery(StepResult.ROLLED_BACK)
    failure = replace(
        failure, module=name_of(model, blame.module), step=guard.step(), largest_input=blame.largest_input,
        dtype=failure.dtype if findings is not None else guard.dtype(),
    )  # fmt: skip
    goes_on = back and not poisoned
    incident = Incident(guard, model, failure, since, blame.module, call.arguments, error, restarts=not goes_on,
                        findings=findings, calls=tuple(ModuleCall(*one) for one in blame.calls), log=tried.log)  # fmt: skip
    not_cured = _not_cured(incident, tried, output)
    if not_cured is not None:
        return not_cured
    if error is not None:
        traceback.clear_frames(error.__traceback__)  # they hold the activations of the failed step
    if goes_on:
        call.snapshot.roll_back(recast=True)  # a remedy may have run the model to prove itself
        return Recovery(StepResult.CURED)
    raise _cannot_go_on(call, failure, tried) from error


def _handed_on(trouble: Trouble, call: Call, output: Any) -> Recovery | None:
    """Return what the caller gets where nothing is to be looked into."""
    guard, error = call.guard, trouble.error
    if error is None and is_passed_over(guard):
        return Recovery(StepResult.LET_BE)  # a NaN in float32 that is recorded already
    if error is None and call.reads_poison() and not spoils_other_items(call, output):
        return Recovery(StepResult.LET_BE)  # the caller's own numbers
    if error is None and trouble.block is None and is_known_to_be_own(call, trouble.calls, output):
        return Recovery(StepResult.PASSED, output)
    if not call.runs_modules(error):
        guard.without_modules.add((type(call.module), call.entry))
        return Recovery(StepResult.LET_BE)
    return None


def _not_cured(incident: Incident, tried: TriedRemedies, output: Any) -> Recovery | None:
    """Cure the model; return what the caller gets where it is not cured.

    Raises:
        NoDtypeLeft: As in `cure`, but for numbers that float32 has given as well.
    """
    guard, is_by_numbers = incident.guard, incident.error is None
    try:
        if cure(incident, tried):
            return None
    except NoDtypeLeft:
        if not is_by_numbers or not tried.rows or guard.computes_in() != FLOAT32:
            raise
        if stays_in_float32(tried, output):
            tried.take_back(guard, own=incident.failure.module or "")
            return Recovery(StepResult.OWN)
    if is_by_numbers:
        pass_over(guard, incident.failure)  # in float32, which has mended what was to be mended
    return Recovery(StepResult.ROLLED_BACK)


def _cannot_go_on(call: Call, failure: Failure, tried: TriedRemedies) -> Exception:
    if id(call.guard) in here.nets:
        return RestartNeededError(tried)
    why = call.snapshot.obstacle or "it continues from a state that safe_dtype does not know how to bring back"
    return CannotResumeError(str(failure.kind), why, str(call.guard.dtype()))


def _by_numbers(
    model: nn.Module, trouble: Trouble, call: Call, output: Any, *, can_repeat: bool
) -> Recovery | tuple[Failure | None, Blame, Findings | None]:
    """Return what bad numbers are a failure of, and of which module; or the output where they are the model's own."""
    if spoils_other_items(call, output):
        step = FinishedCall(ModuleCall(call.module, call.args, call.kwargs, call.entry), output)
        return trouble.failure if can_repeat and float32_agrees(step, model) is False else None, Blame(), None
    if id(call.guard) not in here.nets and not is_finite(call.tensors):
        return None, Blame(), None  # the caller's own numbers, seen behind what the step wrote over them
    if not is_finite(call.arguments) and has_own_states(call):
        return None, Blame(), None  # what an earlier step has made, and was right to
    if not can_repeat or trouble.block is not None:
        calls = module_spoiling(model, call.run).calls if can_repeat else ()
        return trouble.failure, Blame(trouble.block, calls=calls), None
    blame, own = without_own_values(model, call, output)
    return own or (trouble.failure, blame, None)


def _by_experiment(
    model: nn.Module, trouble: Trouble, call: Call, *, can_repeat: bool
) -> Recovery | tuple[Failure | None, Blame, Findings | None]:
    """Return what an exception is a failure of, and of which module; or the output of a step that passed again."""
    error, failure = trouble.error, trouble.failure
    assert error is not None
    blamed = module_raising(model, error.__traceback__)
    repeat = (
        functools.partial(attempt_at_once, call.guard, call.forward, call.args, call.kwargs) if can_repeat else None
    )
    examined = examine(model, call, error, failure, repeat)
    if isinstance(examined, Recovery):
        return examined
    failure, findings = examined
    return failure, Blame(blamed if findings.module in (None, model) else findings.module), findings


def _up_to_date(
    guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any], tried: TriedRemedies | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    guard.notice_change()
    if not guard.version or not _may_need_a_cast(guard, args, kwargs):
        return args, kwargs
    if tried is not None:
        tried.log.add(as_they_are([*args, *kwargs.values()], main_dtype_of(guard)))
    return up_to_date(guard, args, kwargs)


def _may_need_a_cast(guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether something may be in another dtype than the model: to find out that one, all of its weights are looked at."""
    if guard.left or guard.override is not None:
        return True
    return guard.aligns_inputs and bool(dtypes_of([*args, *kwargs.values()]))


def up_to_date(guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Bring what was made before a change of dtype, caches too, into the model's dtype of now."""
    model = guard.model()
    now = main_dtype(model) if model is not None else None
    if now is None:
        return args, kwargs
    if guard.copy is not None:
        now = torch.float32
    former = guard.left - {now}
    wanted = FLOATS - {now} if guard.aligns_inputs else former
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            cast_cache(value, former, now)
            if guard.override is not None and guard.override.dtype is None:
                cast_keys(value, now)
        elif isinstance(value, ModelOutput):
            # In place, for the generation loop passes the same output in again at every step.
            for name in list(value):
                value[name] = cast(value[name], wanted, now)
    return cast(args, wanted, now), cast(kwargs, wanted, now)
