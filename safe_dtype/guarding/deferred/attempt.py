"""One try of a step, and the look at its numbers: now, or later by the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..classify import classify
from ..diagnosis import is_vetoed
from ..diagnosis.module_call import FinishedCall, finished_calls
from ..diagnosis.trouble import Trouble, Unjudged
from ..failure import Failure, FailureKind
from ..output_checks import SOUND, Peaks, Soundness, saturated, saturation_watch, soundness, spoiled_flag
from ..recover import mention_padding
from ..state import Guard
from ..written.written_places import Written
from .judged_later import UnreadStep, is_put_off, look_at_once, put_off


def attempt(
    guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Trouble | Unjudged | None]:
    """Call `forward(*args, **kwargs)` once: what it has returned, and how it went wrong, if it did or may have."""
    if guard.shared is not None:
        return guard.shared.attempt(guard, forward, args, kwargs)
    block: nn.Module | None = None
    unread: Peaks | None = None
    calls: Sequence[FinishedCall] = ()
    try:
        if guard.blocks:
            with saturation_watch(guard.blocks) as peaks, finished_calls(guard.own_modules) as calls:
                output = forward(*args, **kwargs)
            unread = peaks if is_put_off() else None
            block = saturated(peaks) if unread is None else None
        elif guard.own_modules:
            with finished_calls(guard.own_modules) as calls:
                output = forward(*args, **kwargs)
        else:
            output = forward(*args, **kwargs)
    except Exception as exc:
        failure = classify(exc)
        if failure.sticky if failure is not None else is_vetoed(exc):
            raise
        return None, Trouble(failure, exc)
    if block is None:
        numbers = soundness(output, kwargs)
        if numbers is SOUND and not unread:
            return output, None
        if numbers is Soundness.PADDING:
            mention_padding(guard)
            return output, None
        if numbers is not Soundness.SPOILED:
            return output, Unjudged(spoiled_flag(output, kwargs, unread or ()), unread or (), calls)
    return output, _bad_numbers(block, calls)


def attempt_at_once(
    guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Trouble | None]:
    """Try what has failed again: nothing of it is left to the loop any more."""
    output, trouble = attempt(guard, forward, args, kwargs)
    assert not isinstance(trouble, Unjudged)
    return output, trouble


def _bad_numbers(block: nn.Module | None, calls: Sequence[FinishedCall]) -> Trouble:
    text = "values pinned to the end of float16" if block is not None else "NaN or Inf in the results"
    return Trouble(Failure(FailureKind.NONFINITE, text), None, block, calls)


def judged(
    guard: Guard, trouble: Trouble | Unjudged, output: Any, step: UnreadStep, written: Written
) -> Trouble | None:
    """Return how the step has failed. Where it is sure to be undone, its numbers are left to the loop around it."""
    if isinstance(trouble, Unjudged):
        after = written if written.is_settled else written.and_then(step.snapshot.written())
        if step.snapshot.resumable and after.can_be_undone and put_off(step, trouble.is_spoiled):
            return None
    look_at_once()
    if isinstance(trouble, Trouble):
        return trouble
    block = saturated(trouble.peaks)
    numbers = soundness(output, step.kwargs)
    if numbers is Soundness.PADDING:
        mention_padding(guard)
    return None if block is None and numbers is not Soundness.SPOILED else _bad_numbers(block, trouble.calls)
