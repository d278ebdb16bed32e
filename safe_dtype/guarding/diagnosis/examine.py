"""Find out whether an exception in a step is a matter of dtypes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from ...facts import Dtype
from ...numerics import uncompiled
from ...processes.handler_exceptions import is_of_a_signal
from ..classify import classify, first_line, text_of
from ..failure import Failure
from ..remedies.next_dtype import dtypes_left
from ..state import Guard
from ..step_snapshot import StepSnapshot, state_places
from .experiment import diagnose, is_of_a_compiler
from .failure_shown import failure_shown
from .findings import Findings
from .module_call import ModuleCall, calls_in, captured_calls, modules_in
from .pristine import as_it_is
from .trouble import Call, Recovery, StepResult, Trouble

logger = logging.getLogger(__name__)

Repeat = Callable[[], tuple[Any, Trouble | None]]


def examine(
    model: nn.Module, call: Call, error: Exception, by_text: Failure | None, repeat: Repeat | None
) -> Recovery | tuple[Failure | None, Findings]:
    """Run what failed in a step by itself, in other dtypes, and the step once more as it was where that does not show it.

    Args:
        model: The guarded model.
        call: The call that failed, with the state before it in force.
        error: What it raised.
        by_text: What the text of `error` tells; None for one that nobody knows.
        repeat: Runs the step again; None where its state cannot be brought back.

    Returns:
        What came of the step where it passed the second time. Else the failure, None for one that no dtype cures, and
        what the trials showed.
    """
    guard = call.guard
    modules = modules_in(model, error.__traceback__)
    calls = calls_in(model, error.__traceback__)
    dtypes = list(dtypes_left(guard, model))
    if repeat is not None:
        alone = _innermost_alone(guard, model, calls, error, dtypes)
        if alone is not None:
            return failure_shown(alone, by_text, error, guard.dtype(), modules), alone
        with as_it_is(error):
            again, calls = _again(repeat, call, modules)
        if again is not None:
            logger.warning(
                "%s at step %d: %s, and the same step passed the second time. Nothing was changed",
                type(model).__name__, guard.step(), first_line(text_of(error) or type(error).__name__),
            )  # fmt: skip
            return again
        if is_of_a_compiler(error) and (eager_error := _raised_eagerly(repeat, call)) is not None:
            error, by_text = eager_error, by_text or classify(eager_error)
            modules = modules_in(model, eager_error.__traceback__)
            with uncompiled():
                _, calls = _again(repeat, call, modules)
    findings = diagnose(guard, model, calls, error, dtypes)
    return failure_shown(findings, by_text, error, guard.dtype(), modules), findings


def _innermost_alone(
    guard: Guard, model: nn.Module, calls: list[ModuleCall], error: Exception, dtypes: list[Dtype]
) -> Findings | None:
    """Return what trials of the innermost module show: it fails again as it is, and not otherwise. None: they do not.

    A step that fails for good need not run once more, which may be as long as a prompt. What the module was called with is
    what the frames of `error` hold, which for a module without others is what it was: it has no state to write to.
    """
    if not calls or is_of_a_compiler(error) or next(calls[0].module.children(), None) is not None:
        return None
    findings = diagnose(guard, model, calls[:1], error, dtypes)
    return findings if findings.module is calls[0].module else None


def _raised_eagerly(repeat: Repeat, call: Call) -> Exception | None:
    """Return what the step raises where nothing of it is compiled; None where it passes, or no trial is due."""
    before = StepSnapshot(state_places(call.module), call.args, call.kwargs, module=call.module)
    try:
        with uncompiled():
            _, trouble = repeat()
    except Exception as exc:
        if is_of_a_signal(exc):
            raise
        trouble = None
    before.roll_back()
    return trouble.error if trouble is not None else None


def _again(repeat: Repeat, call: Call, modules: list[nn.Module]) -> tuple[Recovery | None, list[ModuleCall]]:
    """Repeat the step: what came of it where it passed, else the calls that failed in it, innermost first."""
    # What the call's own snapshot has not learned yet is looked at as well.
    before = StepSnapshot(state_places(call.module), call.args, call.kwargs, module=call.module)
    with captured_calls([module for module in modules if module is not call.module]) as captured:
        try:
            output, trouble = repeat()
        except Exception as exc:
            if is_of_a_signal(exc):
                raise
            before.roll_back()
            return None, []
    if trouble is None:
        return Recovery(StepResult.PASSED, output), []
    before.roll_back()
    whole = ModuleCall(call.module, call.args, call.kwargs, call.entry)
    return None, [*(captured[module] for module in modules if module in captured), whole]
