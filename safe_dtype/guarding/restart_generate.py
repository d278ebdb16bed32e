"""The net around `generate`, for what fails outside any guarded step, or cannot be run again: begin anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers.generation.streamers import BaseStreamer

from ..errors import CannotResumeError, SafeDtypeError
from .blame import module_raising, name_of
from .classify import classify
from .events import changing
from .failure import Failure, FailureKind
from .incident import Incident
from .recover import TriedRemedies, cure
from .state import Guard, here
from .step import RestartNeededError, up_to_date
from .step_snapshot import StepSnapshot

# Objects of the caller that may have counted the tokens made so far.
_COUNTING = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")


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
    snapshot = StepSnapshot(guard.places, args, kwargs, module=guard.model(), written=guard.written_in_steps())
    tried = TriedRemedies()
    around, step = here.nets, here.step
    here.nets = (*around, id(guard))
    try:
        while True:
            here.step = 0
            try:
                return generate(*args, **kwargs)
            except RestartNeededError as exc:
                failure, error = (
                    Failure(FailureKind.NONFINITE, "a step that cannot be run again"),
                    exc.__cause__ or exc,
                )
            except SafeDtypeError:
                raise
            except Exception as exc:
                failed = classify(exc)
                # Steps ran, and their logits were sound: it is a processor that spoiled them, not the dtype.
                if failed is None or (failed.kind is FailureKind.NONFINITE and here.step and not failed.sticky):
                    raise
                failure, error = failed, exc
                if not _cure(guard, tried, failure, exc, [*args, *kwargs.values()]):
                    raise
            _check_restart(guard, failure, error, snapshot, streamer, kwargs)
            args, kwargs = up_to_date(guard, args, kwargs)
    finally:
        here.nets, here.step = around, step


def _cure(guard: Guard, tried: TriedRemedies, failure: Failure, error: Exception, arguments: list[Any]) -> bool:
    since = time.perf_counter()
    model = guard.model()
    if model is None:
        return False
    blamed = module_raising(model, error.__traceback__)
    failure = replace(failure, module=name_of(model, blamed), step=here.step)
    with changing(guard):
        return cure(Incident(guard, model, failure, since, blamed, arguments, error, restarts=True), tried)


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
    elif here.step and (counting := [name for name in _COUNTING if kwargs.get(name) is not None]):
        reason = f"tokens have been made, and {', '.join(counting)} may have counted them"
    if reason is not None:
        raise CannotResumeError(str(failure.kind), reason, str(guard.dtype())) from error
    if streamer is not None:
        streamer.begin_anew()
