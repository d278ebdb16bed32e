"""The net around `generate`, for what fails outside any guarded step, or cannot be run again: begin anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from transformers.generation.streamers import BaseStreamer

from ..errors import CannotResumeError, SafeDtypeError
from ..models.cast_back import as_they_are
from .blame import module_raising, name_of
from .classify import classify
from .diagnosis import calls_in, diagnose, failure_shown, is_vetoed, modules_in, passes_through_callers
from .diagnosis.lost_device import loses_a_device, raise_if_lost
from .events import changing
from .failure import Failure, FailureKind
from .incident import Incident
from .recover import TriedRemedies, cure, keep_lessons
from .remedies.next_dtype import dtypes_left
from .shared_steps import is_spread
from .state import Guard, here
from .step import CHANGES_STAY, RestartNeededError, guarded_step, main_dtype_of, note_end, up_to_date
from .step_snapshot import StepSnapshot

# Objects of the caller that may have counted the tokens made so far.
COUNTING = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")


class CountedStreamer(BaseStreamer):  # type: ignore[misc]  # transformers has no types
    """A streamer that knows how often it was fed, and leaves out what was fed before the generation began anew."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._skip = 0
        self.puts = 0

    def put(self, value: Any) -> None:
        """Hand tokens on."""
        if self._skip:
            self._skip -= 1
            return
        self.puts += 1
        self._streamer.put(value)

    def end(self) -> None:
        """Hand the end on."""
        self._streamer.end()

    def begin_anew(self) -> None:
        """Leave out as many as were handed on."""
        self._skip = self.puts


def guarded_generate(guard: Guard, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `generate(*args, **kwargs)`; where a step of it cannot be run again after its cure, begin anew.

    Raises:
        CannotResumeError: If that would give tokens twice.
        NoDtypeLeft: If every remedy failed.
    """
    streamer = CountedStreamer(kwargs["streamer"]) if kwargs.get("streamer") is not None else None
    if streamer is not None:
        kwargs = {**kwargs, "streamer": streamer}
    if guard.version:
        args, kwargs = up_to_date(guard, args, kwargs)
    snapshot = StepSnapshot(
        guard.places, args, kwargs, module=guard.model(), written=replace(guard.written_in_steps(), draws=True)
    )
    tried = TriedRemedies()
    failed_at = 0
    around, asked, step, began_anew = here.nets, here.asked, here.step, here.began_anew
    here.nets, here.asked, here.began_anew = (*around, id(guard)), (*asked, [*args, *kwargs.values()]), False
    try:
        while True:
            here.step = 0
            failure: Failure | None
            error: BaseException
            try:
                output = generate(*args, **kwargs)
                keep_lessons(guard, tried)
                return output
            except RestartNeededError as exc:
                failure, error = (
                    Failure(FailureKind.NONFINITE, "a step that cannot be run again"),
                    exc.__cause__ or exc,
                )
                tried, here.began_anew = exc.tried, True
            except SafeDtypeError:
                raise
            except Exception as exc:  # noqa: BLE001  (raised below where it cannot be cured, with nothing added to it)
                raise_if_lost(guard, exc)  # a loop waits for the device outside of steps
                tried.first = tried.first or exc
                is_alone = guard.shared is None and not is_spread(guard.model())
                failure = _cure(guard, tried, exc, [*args, *kwargs.values()]) if is_alone else None
                error = exc
            if failure is None:
                raise tried.error_for(error)
            failed_at = here.step
            _check_restart(guard, failure, error, snapshot, streamer, kwargs)
            tried.log.add(as_they_are([*args, *kwargs.values()], main_dtype_of(guard)))
            args, kwargs = up_to_date(guard, args, kwargs)
    except BaseException as exc:
        note_end(guard, exc)  # outside of all steps, it may be
        # Beyond the step that had failed the remedies were of use, whatever has ended the generation since.
        is_over = isinstance(exc, CHANGES_STAY) or loses_a_device(exc)
        if tried.has_changed and here.step <= failed_at and not is_over:
            snapshot.roll_back()
            with changing(guard):
                tried.take_back(guard, ended_by=exc)
        raise
    finally:
        here.nets, here.asked, here.step, here.began_anew = around, asked, step, began_anew


def _cure(guard: Guard, tried: TriedRemedies, error: Exception, arguments: list[Any]) -> Failure | None:
    """Cure the model where it failed outside of all steps, and return how; None where it is no matter of dtypes."""
    since = time.perf_counter()
    model = guard.model()
    trace = error.__traceback__
    if model is None or _passes_through_a_step(trace) or passes_through_callers(trace):
        return None  # a step has looked at it already; or what the caller brought has failed, not the model
    failure = classify(error)
    if failure is None and is_vetoed(error):
        return None
    # Steps ran, and their logits were sound: it is a processor that spoiled them, not the dtype.
    if failure is not None and failure.kind is FailureKind.NONFINITE and here.step and not failure.sticky:
        return None
    modules, findings = modules_in(model, trace), None
    if failure is None and not modules:
        return None
    with changing(guard):
        if failure is None or not failure.sticky:
            calls = calls_in(model, trace)
            findings = diagnose(guard, model, calls, error, list(dtypes_left(guard, model)))
            failure = failure_shown(findings, failure, error, guard.dtype(), modules)
        if failure is None:
            return None
        blamed = findings.module if findings is not None else None
        blamed = module_raising(model, trace) if blamed is None else blamed
        failure = replace(failure, module=name_of(model, blamed), step=here.step)
        incident = Incident(
            guard, model, failure, since, blamed, arguments, error, restarts=True, findings=findings, log=tried.log
        )
        return failure if cure(incident, tried) else None


def _passes_through_a_step(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_code is guarded_step.__code__:
            return True
        trace = trace.tb_next
    return False


def _check_restart(
    guard: Guard, failure: Failure, error: BaseException, snapshot: StepSnapshot, streamer: CountedStreamer | None,
    kwargs: dict[str, Any],
) -> None:  # fmt: skip
    """Bring everything back to the beginning of the generation.

    Raises:
        CannotResumeError: Where tokens were given to somebody already, or a state cannot be brought back.
    """
    reason = None
    if not snapshot.roll_back(recast=True):
        cache = "the cache that was passed in is of a class that safe_dtype does not know how to bring back"
        reason = snapshot.obstacle or cache
    elif here.step and streamer is not None and streamer.puts > 1:
        reason = "tokens have been streamed, and the step that failed cannot be run again"
    elif here.step and (counting := [name for name in COUNTING if kwargs.get(name) is not None]):
        reason = f"tokens have been made, and {', '.join(counting)} may have counted them"
    if guard.shared is not None:
        reason = guard.shared.may_restart(reason)
    if reason is not None:
        raise CannotResumeError(str(failure.kind), reason, str(guard.dtype())) from error
    if streamer is not None:
        streamer.begin_anew()
