"""Cure a failure: pick the next remedy, apply it, record and log what was done."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable

import torch
from torch import nn

from ..errors import NoDtypeLeft, SafeDtypeError, StrictModeError
from ..errors.of_the_moment import is_of_memory
from ..errors.warn import warn
from ..facts import FLOAT32, Dtype, LearnedFailure
from ..models.undo_log import UndoLog
from .callers_autocast import autocast_around, autocast_here
from .classify import classify, first_line, text_of
from .diagnosis.learn import keep, lesson
from .diagnosis.lost_device import device_lost, loses_a_device
from .diagnosis.spoiled_weights import spoiled_weights
from .events import changing, record
from .failure import Attempt, Event, Failure
from .incident import Incident
from .remedies import NotPossible, Remedy, remedies_for
from .remedies.next_dtype import ChangeDtype
from .state import Guard

logger = logging.getLogger(__name__)

_MOST_REFUSALS = 8  # that a report has
_MOST_REMEDIES = 50  # on one failing step: remedies of a class without `__eq__` never equal one that was tried


class TriedRemedies:
    """The remedies tried so far on one failing step, or on one failing generation. No remedy is tried twice."""

    def __init__(self, first: BaseException | None = None) -> None:
        self.remedies: list[Remedy] = []
        self.attempts: list[Attempt] = []
        self.log = UndoLog()
        self.lessons: list[LearnedFailure] = []  # of texts that nobody knew
        self.left_order = ""  # the dtype that was asked for and left, with the failure that it was left for
        self.first = first  # what the step raised before anything was changed
        self.rows: dict[str, torch.Tensor] = {}  # of the results that were no numbers before anything was changed
        self._in_force: tuple[Remedy, nn.Module | None] | None = None  # applied last, and the module that had failed

    def failed(self, incident: Incident) -> None:
        """Note that the remedy applied last was followed by this failure; undo it where the same module failed."""
        if self._in_force is None:
            return
        remedy, module = self._in_force
        self._in_force = None
        if module is incident.blamed:
            remedy.undo(incident)
        outcome = f"applied, and then: {first_line(incident.failure.message)}"
        self.attempts.append(Attempt(str(remedy), outcome))

    def applied(self, remedy: Remedy, incident: Incident) -> None:
        """Note that `remedy` is in force from now on."""
        self._in_force = remedy, incident.blamed

    @property
    def has_changed(self) -> bool:
        """Whether a remedy was applied."""
        return len(self.log) > 0

    def take_back(self, guard: Guard, *, own: str | None = None, ended_by: BaseException | None = None) -> None:
        """Take back everything that was done, the latest first. Nobody else runs a step of the model meanwhile.

        Args:
            guard: Of the model.
            own: The module whose NaN or Inf float32 has not mended, for the log.
            ended_by: What has ended the call.
        """
        self.left_order = ""
        if not self.has_changed:
            return
        self.log.undo(is_device_lost=ended_by is not None and loses_a_device(ended_by))
        guard.version += 1
        model = guard.model()
        name = type(model).__name__
        if own is not None:
            spoiled = spoiled_weights(model.get_submodule(own)) if model is not None else None
            logger.warning(
                "NaN or Inf in %s comes in float32 as well: handed on, and nothing was changed. %s", own or name,
                spoiled or "Next: look at the weights and the inputs of that module",
            )  # fmt: skip
        elif ended_by is not None and not isinstance(ended_by, Exception):
            logger.warning("%s: interrupted; the change was taken back (%s again)", name, guard.dtype())
        else:
            logger.warning("%s: what was tried did not help, and was taken back", name)

    def error_for(self, error: BaseException) -> BaseException:
        """Return what the caller gets where `error` was raised last: the first one, where both are the same failure."""
        first = self.first
        return first if first is not None and type(first) is type(error) else error


def cure(incident: Incident, tried: TriedRemedies) -> bool:
    """Apply the next remedy to the model of `incident`. False: there is none, the failure has nothing to do with dtypes.

    Raises:
        DeviceLostError: If the failure is sticky.
        StrictModeError: In strict mode.
        NoDtypeLeft: If remedies exist, and each of them was tried or cannot be applied.
    """
    guard, failure = incident.guard, incident.failure
    before = guard.dtype()
    if before is None:  # float64: none of ours
        return False
    if failure.sticky:
        raise device_lost(incident.model, incident.blamed, failure, before) from incident.error
    before_this = len(tried.attempts)
    tried.failed(incident)
    if guard.policy.mode == "strict":
        return _refuse(incident, before)
    for remedy in remedies_for(incident):
        if remedy in tried.remedies or len(tried.remedies) == _MOST_REMEDIES:
            continue
        tried.remedies.append(remedy)
        try:
            grown = _apply(remedy, incident)
        except NotPossible as exc:
            tried.attempts.append(Attempt(str(remedy), str(exc)))
            continue
        tried.applied(remedy, incident)
        _learn(incident, tried, before)
        guard.version += 1
        _record(incident, remedy, before, grown, tuple(tried.attempts[before_this:]))
        if remedy.changes_dtype:
            tried.left_order = tried.left_order or _left_order(guard, failure)
        return True
    # An exception that no trial cures, or that a change without a trial has left as it was, is the caller's own.
    is_known = incident.findings is None or incident.findings.is_conclusive or not tried.has_changed
    if tried.attempts and incident.is_hopeful and is_known:
        raise NoDtypeLeft(_described(failure), str(guard.dtype()), tuple(tried.attempts)) from incident.error
    return False


def change_dtype(guard: Guard, dtype: Dtype, failure: Failure) -> None:
    """Bring the model into `dtype` for a failure that a copy of it had elsewhere; it is an event of this model as well.

    Raises:
        NotPossible: If it cannot be brought there. It is as it was.
    """
    since, model, remedy = time.perf_counter(), guard.model(), ChangeDtype(dtype)
    with changing(guard):
        before = guard.dtype()
        if model is None or before in (None, dtype):
            return
        incident = Incident(guard, model, failure, since)
        grown = _apply(remedy, incident)
        guard.version += 1
        _record(incident, remedy, before, grown, ())
        _warn_of_order(guard, _left_order(guard, failure))


def _learn(incident: Incident, tried: TriedRemedies, before: Dtype) -> None:
    findings, error = incident.findings, incident.error
    if findings is not None and (findings.without_onednn or findings.without_autocast):
        return  # another kernel of the same dtype cures it, or what the caller does is a part of it: nothing for loads
    if error is not None and findings is not None and findings.module is not None and classify(error) is None:
        tried.lessons.append(lesson(incident.model, error, before, findings))


def keep_lessons(guard: Guard, tried: TriedRemedies) -> None:
    """Keep what was learned of failures that the remedies have cured: in the report, and for loads of its checkpoint.

    And how the remedies are taken back, where that is to be done later. Who asked for a dtype is told now which one has
    helped: what is NaN in float32 as well is no reason to load in that.
    """
    if guard.logs is not None and tried.has_changed:
        guard.logs.append(tried.log)
    lessons, tried.lessons = tried.lessons, []
    guard.learned += lessons
    if counting := [lesson for lesson in lessons if lesson.checkpoint is not None]:
        keep(counting)
    text, tried.left_order = tried.left_order, ""
    _warn_of_order(guard, text)


def _apply(remedy: Remedy, incident: Incident) -> int:
    """Apply one remedy. Whatever ends it midway, the model is as it was before."""
    log = incident.log
    if not log:
        log.add(_guard_as_it_is(incident.guard))
    before = len(log)
    try:
        grown = remedy.apply(incident)
    except BaseException as exc:
        is_short = is_of_memory(exc)
        if is_short:
            traceback.clear_frames(exc.__traceback__)  # they hold the tensor that was being made
        log.undo(before, is_device_lost=loses_a_device(exc))
        if is_short:
            raise NotPossible(first_line(str(exc))) from exc
        raise
    if len(log) == before:  # one from outside, which knows of no log
        log.add(lambda: remedy.undo(incident))
    return grown


def _guard_as_it_is(guard: Guard) -> Callable[[], None]:
    """Return what brings the guard's own notes back to what they are now."""
    notes = {"cast_from": guard.cast_from, "autocast": guard.autocast, "aligns_inputs": guard.aligns_inputs,
             "runs_eagerly": guard.runs_eagerly, "left": set(guard.left), "mentioned": set(guard.mentioned)}  # fmt: skip
    events = len(guard.events)

    def undo() -> None:
        guard.__dict__.update(notes)
        del guard.events[events:]
        guard.look_anew()

    return undo


def is_passed_over(guard: Guard) -> bool:
    """Whether non-finite results are returned without a further event: one was recorded, and there is no remedy."""
    return _nonfinite(guard) in guard.mentioned and guard.computes_in() == FLOAT32


def _nonfinite(guard: Guard) -> str:
    """Return what was mentioned: under an autocast of the caller's, such results are another matter than without."""
    return f"nonfinite{'' if guard.override else autocast_here() or ''}"


def pass_over(guard: Guard, failure: Failure) -> None:
    """Record non-finite results that no dtype can cure, for the model is in float32 already. The caller gets them."""
    before = guard.computes_in()
    if before is None:
        return
    guard.mentioned.add(_nonfinite(guard))
    event = Event(failure.kind, before, None, failure.module, failure.step or 0, "none", failure.message,
                  largest_input=failure.largest_input)  # fmt: skip
    record(guard, event)
    logger.warning(
        "%s in %s, where no wider dtype is left: look at the weights and the inputs", _placed(failure), before
    )


def mention_spread(guard: Guard) -> None:
    """Log, once a model, that it has failed and nothing is tried, for other processes hold parts of its weights."""
    if "spread" not in guard.mentioned:
        guard.mentioned.add("spread")
        logger.warning(
            "a step has failed on this rank, and nothing is tried: other ranks hold parts of the weights, and what one "
            "rank runs or casts alone leaves them waiting"
        )


def mention_padding(guard: Guard) -> None:
    """Log, once a model, that rows of padding are no numbers. Nobody reads them, but a mean over all rows does."""
    if "padding" not in guard.mentioned:
        guard.mentioned.add("padding")
        logger.warning(
            "NaN or Inf in rows that attention_mask hides, handed on as they are: a mean over all rows is NaN as well. "
            "Next: pool over the rows that the mask shows"
        )


def note_refusal(guard: Guard, error: BaseException) -> None:
    """Keep how a call has ended for the report: no event tells of it. A call that is made again is kept once."""
    text = text_of(error)
    if not isinstance(error, SafeDtypeError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if text not in guard.refusals:
        guard.refusals.append(text)
        del guard.refusals[:-_MOST_REFUSALS]


def _record(incident: Incident, remedy: Remedy, before: Dtype, grown: int, tried: tuple[Attempt, ...]) -> None:
    guard, failure = incident.guard, incident.failure
    after = guard.dtype() or before
    event = Event(
        failure.kind, before, after, failure.module, failure.step or 0, str(remedy), failure.message,
        (time.perf_counter() - incident.since) * 1e3, grown, failure.largest_input, incident.restarts, tried,
        autocast=_left_autocast(incident),
    )  # fmt: skip
    record(guard, event)
    logger.warning(
        "%s at step %d in %s: %s (%.0f ms, %+d bytes): %s",
        failure.kind, event.step, failure.module or type(incident.model).__name__,
        f"{before} -> {after}" if remedy.changes_dtype else f"{before}, going on with {remedy}",
        event.milliseconds, grown,
        first_line(failure.message),
        extra={"kind": failure.kind.value, "step": event.step, "before": before.name, "after": after.name},
    )  # fmt: skip


def _left_autocast(incident: Incident) -> str:
    """Return the autocast of the caller's under which the step failed, and which had to be turned off as well."""
    override, findings = incident.guard.override, incident.findings
    is_left = override is not None and findings is not None and findings.without_autocast
    return str(override.replaced) if override is not None and is_left else ""


def _left_order(guard: Guard, failure: Failure) -> str:
    ordered = guard.plan.ordered if guard.plan else None
    return f"{ordered} was asked for, and {_described(failure)}" if ordered is not None else ""


def _warn_of_order(guard: Guard, left: str) -> None:
    if left and "ordered" not in guard.mentioned:
        guard.mentioned.add("ordered")
        dtype = guard.dtype()
        warn(f"{left}. Going on in {dtype}. Next: load with dtype='{dtype}'")


def _refuse(incident: Incident, before: Dtype) -> bool:
    dtypes = tuple(str(remedy) for remedy in remedies_for(incident) if remedy.changes_dtype)
    if not incident.is_hopeful:
        return False
    if not dtypes and before == FLOAT32:
        return False
    other_kernel = incident.findings is not None and incident.findings.without_onednn
    around = autocast_around(incident.model) if incident.findings and incident.findings.without_autocast else None
    next_step = f"leave out the {around} {around.place}, and " if around is not None else ""
    next_step += "run it under torch.backends.mkldnn.flags(enabled=False), " if other_kernel else ""
    next_step += (
        f"{'load the model in one of these, none of which was tried, or ' if dtypes else ''}guard it without 'strict'"
    )
    raise StrictModeError(str(before), _described(incident.failure), dtypes, next_step=next_step) from incident.error


def _placed(failure: Failure) -> str:
    at = f" at step {failure.step}" if failure.step is not None else ""
    where = f" in {failure.module}" if failure.module else ""
    return f"{failure.kind}{where}{at}"


def _described(failure: Failure) -> str:
    return f"{_placed(failure)}: {first_line(failure.message)}"
