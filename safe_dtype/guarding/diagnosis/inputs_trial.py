"""Run a step that two dtypes met in with its inputs in the model's dtype: a processor returns float32, whatever the model is in."""

from __future__ import annotations

import logging

from torch import nn

from ...models.casting import FLOATS, cast, dtypes_of
from ...models.recast import main_dtype
from ...processes.handler_exceptions import is_of_a_signal
from ..blame import module_raising
from ..classify import first_line
from ..failure import FailureKind
from .autocast_trial import Attempt
from .pristine import as_it_is
from .trouble import Call, Recovery, StepResult, Trouble

logger = logging.getLogger(__name__)


def try_with_inputs_cast(model: nn.Module, call: Call, trouble: Trouble, attempt: Attempt) -> Recovery | None:
    """Repeat a step with its floating inputs in the model's dtype; where the dtypes then agree, they are cast from now on.

    That is no event, and no matter of strict mode: the caller would have to cast them, and nothing of the model changes.

    Args:
        model: The guarded model.
        call: The call that failed, with the state before it in force.
        trouble: How it failed.
        attempt: Runs a step, and looks at it.

    Returns:
        What came of the step: cured where it fails of something else now. None where its inputs are in the model's dtype,
        or that is not what it fails of: the state is that before the step then.
    """
    guard, failure, now = call.guard, trouble.failure, main_dtype(model)
    if failure is None or failure.kind is not FailureKind.DTYPE_MISMATCH or guard.aligns_inputs or now is None:
        return None
    dtypes = dtypes_of(call.arguments)
    others = FLOATS - {now}
    if not dtypes & others:
        return None
    args, kwargs = cast(call.args, others, now), cast(call.kwargs, others, now)
    with as_it_is(trouble.error):
        try:
            output, left = attempt(guard, call.forward, args, kwargs)
        except Exception as exc:
            if is_of_a_signal(exc):
                raise
            left = trouble
    if left is not None:
        call.snapshot.roll_back()
        if not _goes_further(model, trouble, left):
            return None
    guard.aligns_inputs = True
    guard.version += 1
    logger.info(
        "%s takes %s: its inputs in %s are cast from now on (%s)",
        type(model).__name__, guard.dtype(), ", ".join(sorted(str(one).removeprefix("torch.") for one in dtypes & others)),
        first_line(failure.message),
    )  # fmt: skip
    return Recovery(StepResult.PASSED, output) if left is None else Recovery(StepResult.CURED)


def _goes_further(model: nn.Module, before: Trouble, after: Trouble) -> bool:
    """Whether a step fails of something else than before: not of the dtypes, or of those that meet in another module."""
    if after.failure is None or before.error is None:
        return False
    if after.error is None or after.failure.kind is not FailureKind.DTYPE_MISMATCH:
        return True
    first, second = (module_raising(model, error.__traceback__) for error in (before.error, after.error))
    return first is not second
