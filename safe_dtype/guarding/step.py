"""One guarded step: run it, look at what it returns; where it failed bring everything back, cure, and run it again."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ..errors import CannotResumeError
from ..models.casting import cast, cast_cache, is_finite
from ..models.recast import main_dtype
from .blame import Blame, module_raising, module_spoiling, name_of, runs_modules
from .classify import classify
from .compute_dtype import as_planned
from .events import changing
from .failure import Failure, FailureKind
from .incident import Incident
from .output_checks import Soundness, saturated, saturation_watch, soundness
from .recover import TriedRemedies, cure, is_passed_over, mention_padding, pass_over
from .state import CALL, Guard, here
from .step_snapshot import StepSnapshot
from .written_places import NOTHING, hand_back

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class RestartNeededError(Exception):
    """The model was cured, and the step cannot be run again: the generation around it must begin anew."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a guarded model that failed, with the state before it."""

    guard: Guard
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    snapshot: StepSnapshot
    entry: str = CALL  # or the name of the method that was called

    @property
    def arguments(self) -> list[Any]:
        """All arguments."""
        return [*self.args, *self.kwargs.values()]

    @property
    def tensors(self) -> list[Any]:
        """Those that a step only reads: it may write into the states in caches and lists."""
        return [value for value in self.arguments if isinstance(value, (torch.Tensor, ModelOutput))]

    def reads_poison(self) -> bool:
        """Whether it was given numbers that are not finite, as far as it has not written over them."""
        return not is_finite(self.tensors) and not self.snapshot.has_written_inputs()

    def run(self) -> Any:
        """Call with every module's hooks, which a compiled form leaves out."""
        called = self.module if self.entry == CALL else getattr(self.module, self.entry)
        return as_planned(self.guard, called, self.args, self.kwargs)(*self.args, **self.kwargs)

    def runs_modules(self) -> bool:
        """Whether it runs any module: of methods other than forward nobody knows before."""
        if self.entry in (CALL, "forward") or self.guard.model() is None or not self.snapshot.roll_back():
            return True
        return runs_modules(self.module, self.run)


@dataclass(frozen=True, slots=True)
class Trouble:
    """How a call went wrong: by an exception, or by its numbers."""

    failure: Failure
    error: Exception | None = None
    block: nn.Module | None = None  # whose values are pinned to the end of float16


class StepResult(Enum):
    """What came of looking at a step that went wrong."""

    CURED = "the model has changed, and the state is that before the step"
    LET_BE = "no matter of dtypes, and nothing was touched"
    ROLLED_BACK = "no matter of dtypes, and the state is that before the step"


def guarded_step(
    guard: Guard, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
    entry: str = CALL,
) -> Any:  # fmt: skip
    """Call `forward(*args, **kwargs)`, a call of the guarded model or of a model inside it, until it comes out right.

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
    tried: TriedRemedies | None = None
    plain, own = forward, (args, kwargs)
    while True:
        turn = guard.lock.begin_step()
        try:
            version = guard.version
            if version:
                args, kwargs = up_to_date(guard, args, kwargs)
            kind = (module, entry, len(args), *kwargs)
            written = guard.written.get(kind, NOTHING)
            random = written.draws or not written.is_settled
            snapshot = StepSnapshot(guard.places, args, kwargs, random=random, module=module, written=written)
            forward = as_planned(guard, plain, args, kwargs)
            output, trouble = _attempt(guard, forward, args, kwargs)
        finally:
            guard.lock.end_step(turn)
        if trouble is None:
            if not written.is_settled:
                guard.written[kind] = written = written.and_then(snapshot.written())
            if written.inputs:
                hand_back(written.inputs, own, (args, kwargs))
            guard.count_step(output)
            return output
        tried = tried or TriedRemedies()
        call = Call(guard, module, args, kwargs, snapshot, entry)
        with changing(guard):
            # While this thread waited, another may have cured the model.
            if guard.version != version and call.snapshot.roll_back(recast=True):
                continue
            result = _recover(guard, tried, trouble, call)
        if result is StepResult.CURED:
            del output
        elif trouble.error is not None:
            raise trouble.error
        else:
            # Handed on as it is. Where the state was brought back, the step is made once more.
            return output if result is StepResult.LET_BE else forward(*args, **kwargs)


def _attempt(
    guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Trouble | None]:
    block = None
    try:
        if guard.blocks:
            with saturation_watch(guard.blocks) as peaks:
                output = forward(*args, **kwargs)
            block = saturated(peaks)
        else:
            output = forward(*args, **kwargs)
    except Exception as exc:
        failure = classify(exc)
        if failure is None:
            raise
        return None, Trouble(failure, exc)
    if block is None:
        numbers = soundness(output, kwargs)
        if numbers is Soundness.PADDING:
            mention_padding(guard)
        if numbers is not Soundness.SPOILED:
            return output, None
    text = "values pinned to the end of float16" if block is not None else "NaN or Inf in the results"
    return output, Trouble(Failure(FailureKind.NONFINITE, text), None, block)


def _recover(guard: Guard, tried: TriedRemedies, trouble: Trouble, call: Call) -> StepResult:
    """Bring everything back and cure the model, where this is a matter of dtypes.

    Raises:
        RestartNeededError: If the call cannot be repeated, and a generation around it can begin anew.
        CannotResumeError: If nothing around it can.
    """
    since = time.perf_counter()
    model = guard.model()
    error = trouble.error
    inside_generate = id(guard) in here.nets
    poisoned = error is None and call.reads_poison()
    if model is None or (poisoned and not inside_generate) or (error is None and is_passed_over(guard)):
        return StepResult.LET_BE  # the caller's own numbers, or a NaN in float32 that is recorded already
    if not call.runs_modules():
        guard.without_modules.add((type(call.module), call.entry))
        return StepResult.LET_BE
    blame = Blame(module_raising(model, error.__traceback__ if error else None) or trouble.block)
    back = call.snapshot.roll_back()
    poisoned = poisoned or (error is None and not is_finite(call.arguments))
    if error is None and not inside_generate and not is_finite(call.tensors):
        return StepResult.ROLLED_BACK  # the caller's own numbers, seen behind what the step wrote over them
    if error is None and back and not poisoned:
        if trouble.block is None:
            blame = module_spoiling(model, call.run)
        back = call.snapshot.roll_back()
    failure = _located(trouble, call, model, blame)
    goes_on = back and not poisoned
    incident = Incident(guard, model, failure, since, blame.module, call.arguments, error, restarts=not goes_on)
    if not cure(incident, tried):
        if error is None:
            pass_over(guard, failure)
        return StepResult.ROLLED_BACK
    if error is not None:
        traceback.clear_frames(error.__traceback__)  # they hold the activations of the failed step
    if goes_on:
        call.snapshot.roll_back(recast=True)  # a remedy may have run the model to prove itself
        return StepResult.CURED
    raise (RestartNeededError() if inside_generate else _cannot_resume(call, failure)) from error


def _cannot_resume(call: Call, failure: Failure) -> CannotResumeError:
    why = call.snapshot.obstacle or "it continues from a state that safe_dtype does not know how to bring back"
    return CannotResumeError(str(failure.kind), why, str(call.guard.dtype()))


def _located(trouble: Trouble, call: Call, model: nn.Module, blame: Blame) -> Failure:
    """Return the failure with where it is, and for bad numbers in which dtype they were."""
    failure, guard = trouble.failure, call.guard
    return replace(
        failure,
        module=name_of(model, blame.module),
        step=guard.step(),
        largest_input=blame.largest_input,
        dtype=failure.dtype or guard.dtype() if trouble.error is None else failure.dtype,
    )


def up_to_date(guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Bring what was made before a change of dtype, caches too, into the model's dtype of now."""
    model = guard.model()
    now = main_dtype(model) if model is not None else None
    if now is None:
        return args, kwargs
    former = guard.left - {now}
    wanted = {dtype for dtype in _FLOATS if dtype != now} if guard.aligns_inputs else former
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            cast_cache(value, former, now)
        elif isinstance(value, ModelOutput):
            # In place, for the generation loop passes the same output in again at every step.
            for name in list(value):
                value[name] = cast(value[name], wanted, now)
    return cast(args, wanted, now), cast(kwargs, wanted, now)
