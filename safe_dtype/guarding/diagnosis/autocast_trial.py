"""Run a failed step without the `torch.autocast` that is on in it: where it comes out right, the weights are not to blame."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import autocast
from transformers.cache_utils import Cache

from ...errors import StrictModeError
from ...models.cast_back import as_they_are
from ...models.casting import FLOATS, cast, cast_cache, dtypes_of
from ...models.recast import main_dtype
from ...models.wrapped_methods import wrap_method
from ...processes.handler_exceptions import is_of_a_signal
from ..blame import module_raising, module_spoiling, name_of
from ..callers_autocast import AutocastOverride, CallersAutocast, autocast_around, overriding_enter
from ..classify import first_line, text_of
from ..events import record
from ..failure import Event, FailureKind
from ..state import Guard
from .inner_autocast import autocasts_inside
from .pristine import as_it_is
from .trouble import Call, Recovery, StepResult, Trouble

logger = logging.getLogger(__name__)

Attempt = Callable[[Guard, Callable[..., Any], tuple[Any, ...], dict[str, Any]], tuple[Any, Trouble | None]]

_OTHER = {torch.float16: torch.bfloat16, torch.bfloat16: torch.float16}


def try_without_autocast(
    model: nn.Module, call: Call, trouble: Trouble, since: float, attempt: Attempt
) -> Recovery | None:
    """Repeat a step without an autocast, then with it in the other 16-bit dtype; what comes out right stays so.

    The autocast is the caller's, around the step, or where there is none one that the model opens inside of it.

    Args:
        model: The guarded model.
        call: The call that failed, with the state before it in force.
        trouble: How it failed.
        since: `time.perf_counter()` when it was seen.
        attempt: Runs a step, and looks at it.

    Returns:
        What came of the step. None where no autocast is on in it, or it fails in any case: the state is that before
        the step then.

    Raises:
        StrictModeError: If it was the autocast, in strict mode.
    """
    guard, around, now = call.guard, autocast_around(model), main_dtype(model)
    if now is None or guard.override is not None:
        return None
    with as_it_is(trouble.error):
        if around is not None:
            return _without(around, model, call, trouble, since, attempt)
        inside = autocasts_inside(model, trouble.error, lambda: _fails_again(call, attempt))
        recoveries = (_without(own, model, call, trouble, since, attempt) for own in inside)
        return next((recovery for recovery in recoveries if recovery is not None), None)


def _without(
    around: CallersAutocast, model: nn.Module, call: Call, trouble: Trouble, since: float, attempt: Attempt
) -> Recovery | None:
    guard, now = call.guard, main_dtype(model)
    if now is None or (trouble.error is not None and not _fails_again(call, attempt)):
        return None
    module = module_raising(model, trouble.error.__traceback__) if trouble.error else trouble.block
    if trouble.error is None and module is None:
        module = module_spoiling(model, call.run).module
        call.snapshot.roll_back()
    undo = as_they_are(call.arguments, now)
    for override, args, kwargs in _trials(around, call, now):
        passed, output = _passes(call, override, args, kwargs, attempt)
        if passed and guard.policy.mode != "strict":
            _keep(call, override, _event(call, trouble, name_of(model, module), override, since))
            guard.aligns_inputs = guard.aligns_inputs or args is not call.args
            return Recovery(StepResult.PASSED, output)
        call.snapshot.roll_back()
        undo()
        if passed:
            raise _refusal(guard, trouble, name_of(model, module) or type(model).__name__, override) from trouble.error
    return None


def _trials(
    around: CallersAutocast, call: Call, now: torch.dtype
) -> Iterator[tuple[AutocastOverride, tuple[Any, ...], dict[str, Any]]]:
    """Yield what to try, what changes least first: it casts inputs, and keys of earlier steps are in its dtype."""
    off = AutocastOverride(around, None)
    for value in call.arguments:
        if isinstance(value, Cache):
            cast_keys(value, now)
    yield off, call.args, call.kwargs
    others = FLOATS - {now}
    if dtypes_of(call.arguments) & others:
        for value in call.arguments:
            if isinstance(value, Cache):
                cast_keys(value, now)
        yield off, cast(call.args, others, now), cast(call.kwargs, others, now)
    if around.dtype in _OTHER:
        yield AutocastOverride(around, _OTHER[around.dtype]), call.args, call.kwargs


def cast_keys(cache: Any, now: torch.dtype) -> None:
    """Cast what steps under an autocast left as keys and values, in place; states of a recurrence stay as they are."""
    cast_cache(cache, FLOATS - {now}, now, only=("keys", "values", "dtype"))


def _passes(
    call: Call, override: AutocastOverride, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: Attempt
) -> tuple[bool, Any]:
    try:
        with override.on_trial():
            output, trouble = attempt(call.guard, call.forward, args, kwargs)
    except Exception as exc:
        if is_of_a_signal(exc):
            raise
        return False, None
    return trouble is None, output


def _fails_again(call: Call, attempt: Attempt) -> bool:
    """Whether the step fails as it was, with nothing changed: else it is not the autocast that made the difference."""
    try:
        _, trouble = attempt(call.guard, call.forward, call.args, call.kwargs)
    except Exception as exc:
        if is_of_a_signal(exc):
            raise
        trouble = None
    call.snapshot.roll_back()
    return trouble is not None


def _keep(call: Call, override: AutocastOverride, event: Event) -> None:
    """Have it in force in this model's steps from now on, and tell."""
    guard = call.guard
    guard.override = override
    guard.version += 1
    wrap_method(autocast, "__enter__", overriding_enter, guard)
    record(guard, event)
    logger.warning(
        "%s at step %d in %s under %s: going on with %s (%.0f ms): %s",
        event.kind, event.step, event.module, override.replaced, event.remedy, event.milliseconds,
        first_line(event.message),
        extra={"kind": event.kind.value, "step": event.step, "before": event.before.name, "after": event.before.name},
    )  # fmt: skip


def _refusal(guard: Guard, trouble: Trouble, where: str, override: AutocastOverride) -> StrictModeError:
    """Return the error of strict mode, where a step comes out right under `override`."""
    around, dtype = override.replaced, str(guard.dtype())
    reason = f"{_kind(trouble)} in {where} under {around}: {first_line(_text(trouble))}"
    if override.dtype is None:
        would_work, next_step = f"{dtype} without {around}", f"leave out the torch.autocast {around.place}"
    else:
        would_work = str(CallersAutocast(around.device_type, override.dtype))
        next_step = f"use {would_work} {around.place}"
    return StrictModeError(dtype, reason, (would_work,), next_step=f"{next_step}, or use no 'strict'")


def _event(call: Call, trouble: Trouble, module: str | None, override: AutocastOverride, since: float) -> Event:
    guard = call.guard
    dtype = guard.dtype()
    assert dtype is not None
    message = f"{_text(trouble)} ({override.replaced} is on {override.replaced.place})"
    milliseconds = (time.perf_counter() - since) * 1e3
    return Event(
        _kind(trouble), dtype, dtype, module, guard.step() or 0, str(override), message, milliseconds,
        autocast=str(override.replaced),
    )  # fmt: skip


def _text(trouble: Trouble) -> str:
    if trouble.failure is not None:
        return trouble.failure.message
    return (text_of(trouble.error) if trouble.error is not None else "") or type(trouble.error).__name__


def _kind(trouble: Trouble) -> FailureKind:
    return trouble.failure.kind if trouble.failure is not None else FailureKind.OP_UNSUPPORTED
