"""Tensor parallel generation: where one rank fails in its dtype, all go on from that very step in the next one.

A step of such a model is made of collectives: what one rank puts into them, all get out. So no vote is needed while
nothing fails. A rank whose kernel fails puts NaN into the next collective of the model, and all ranks find NaN in the logits
of the same step. There they meet, tell each other what they know, step down, and make that step once more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..errors import CannotResumeError, NoDtypeLeft, PeerLostError, StrictModeError
from ..facts import Dtype, dtype_named
from ..guarding import Failure, FailureKind
from ..guarding.blame import name_of
from ..guarding.classify import classify, first_line
from ..guarding.diagnosis import is_vetoed
from ..guarding.diagnosis.trouble import Call, Recovery, StepResult, Trouble
from ..guarding.output_checks import Soundness, soundness
from ..guarding.recover import TriedRemedies, is_passed_over, mention_padding, pass_over
from ..guarding.remedies.next_dtype import dtypes_left
from ..guarding.shared_steps import share_steps_by
from ..guarding.state import Guard, here
from ..guarding.step import RestartNeededError
from ..models.casting import is_finite
from .armed_poison import Arming
from .gather import gather_texts
from .lockstep import change_together
from .told_poison import ToldPoison
from .world import World, current_world

logger = logging.getLogger(__name__)

# For the others, where this rank has left the step with an error: they may have done so as well, at the same place. Where
# they have not they wait for this rank, which then ends, so that they hear of it.
SECONDS_AFTER_AN_ERROR = 30.0
# NaN that came up after the last collective of a step is seen on this rank alone, and the others are in the next step.
SECONDS_FOR_NAN = 120.0
_NONFINITE = "NaN or Inf in the results"


@dataclass(frozen=True, slots=True)
class _Statement:
    """What one rank says of a step that went wrong."""

    kind: str = ""  # of its own failure; empty where it only sees NaN in the results of all
    problem: str = ""
    module: str = ""
    ladder: tuple[str, ...] = ()  # names of the dtypes to go on in, best first
    can_resume: bool = True  # from the state before the step

    @classmethod
    def from_text(cls, text: str) -> _Statement:
        """Return what `as_text` was made of."""
        entry = json.loads(text)
        return cls(**{**entry, "ladder": tuple(entry["ladder"])})

    def as_text(self) -> str:
        """Return it in one line, for other ranks."""
        return json.dumps(asdict(self))


def share_steps() -> None:
    """Have tensor parallel models that are guarded from now on settle together what fails on one of their ranks.

    Every rank then has to guard such a model at the same point of the program.
    """
    share_steps_by(_steps_of)


def is_tensor_parallel(model: nn.Module) -> bool:
    """Whether transformers has spread the layers of `model` over several ranks."""
    return (getattr(model, "_tp_size", None) or 1) > 1


def _steps_of(guard: Guard) -> TensorParallelSteps | None:
    model = guard.model()
    if model is None or not is_tensor_parallel(model):
        return None
    world = current_world()
    return None if world is None else TensorParallelSteps(world)


class TensorParallelSteps:
    """One rank's part in the steps of a model that all ranks compute together."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._poison = ToldPoison()
        self._arming = Arming()

    def attempt(
        self, guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Trouble | None]:
        """Call `forward(*args, **kwargs)` once, armed at first and for what is new."""
        poison = self._poison
        self._arming.sees(tuple(_shapes(args, kwargs)))
        try:
            with poison if self._arming.is_due or poison.poisoned else nullcontext():
                output = forward(*args, **kwargs)
        except Exception as exc:
            failure = poison.poisoned[0].failure if poison.poisoned else classify(exc)
            if failure is None or failure.sticky or is_vetoed(exc):
                raise
            return None, Trouble(failure, exc)
        self._arming.step_done()
        numbers = soundness(output, kwargs)
        if numbers is Soundness.PADDING:
            mention_padding(guard)
        if numbers is not Soundness.SPOILED:
            return output, None
        failure = poison.poisoned[0].failure if poison.poisoned else Failure(FailureKind.NONFINITE, _NONFINITE)
        return output, Trouble(failure, poison.error)

    def settle(self, call: Call, trouble: Trouble, output: Any) -> Recovery:
        """Meet with all ranks, and bring the model into the next dtype of them all.

        Raises:
            RestartNeededError: If one of them cannot go on from the state before the step.
            NoDtypeLeft: If no dtype is left to all of them.
            StrictModeError: In strict mode.
            RemoteFailure: If another rank could not change its dtype.
            PeerLostError: If a rank has ended or does not come.
        """
        guard, error = call.guard, trouble.error
        has_failed = error is not None
        if not has_failed and (call.reads_poison() or is_passed_over(guard)):
            return Recovery(StepResult.LET_BE)  # the caller's own numbers, or known to stay: all ranks say the same
        if self._poison.is_waiting and output is not None:
            logger.warning("a kernel failed after the last collective of a step, where other ranks cannot see it")
            raise error or RuntimeError(_NONFINITE)
        seconds = SECONDS_AFTER_AN_ERROR if has_failed and output is None else SECONDS_FOR_NAN
        statements = self._meet(self._statement(call, trouble), error, seconds)
        failure = _failure_in(statements, guard)
        agreed = next(_candidates(statements, failure), None)
        if guard.policy.mode == "strict" and (agreed is not None or any(one.kind for one in statements)):
            names = tuple(str(dtype) for dtype in _candidates(statements, failure))
            raise StrictModeError(str(guard.dtype()), failure.message, names) from error
        if agreed is None and not any(statement.kind for statement in statements):
            pass_over(guard, failure)  # float32 gives it as well
            return Recovery(StepResult.LET_BE)
        if agreed is None:
            raise NoDtypeLeft(failure.message, str(guard.dtype()), ()) from error
        change_together(self._world, guard, agreed, failure)
        self._poison.forget()
        self._arming.begin_anew()
        if all(statement.can_resume for statement in statements):
            call.snapshot.roll_back(recast=True)
            return Recovery(StepResult.CURED)
        if id(guard) in here.nets:
            raise RestartNeededError(TriedRemedies(error)) from error
        raise CannotResumeError(str(failure.kind), "a rank cannot bring its state back", str(guard.dtype())) from error

    def may_restart(self, reason: str | None) -> str | None:
        """Return why not all ranks can begin a generation anew; None where all can."""
        reasons = enumerate(gather_texts(self._world, reason or ""))
        return reason or next((f"rank {rank}: {text}" for rank, text in reasons if text), None)

    def _statement(self, call: Call, trouble: Trouble) -> _Statement:
        guard, model, failure = call.guard, call.guard.model(), trouble.failure
        assert model is not None
        assert failure is not None
        can_resume = call.snapshot.roll_back() and is_finite(call.arguments)
        dtypes = list(dtypes_left(guard, model))
        if trouble.error is None:
            return _Statement(ladder=tuple(dtype.name for dtype in dtypes), can_resume=can_resume)
        module = self._poison.poisoned[0].module if self._poison.poisoned else None
        blamed = name_of(model, module()) if module is not None else None
        ladder = [dtype.name for dtype in dtypes if dtype != failure.dtype and dtype in (failure.allowed or dtypes)]
        return _Statement(failure.kind.value, first_line(failure.message), blamed or "", tuple(ladder), can_resume)

    def _meet(self, own: _Statement, error: Exception | None, seconds: float | None) -> list[_Statement]:
        try:
            texts = gather_texts(self._world, own.as_text(), seconds=seconds)
        except PeerLostError as exc:
            if error is None:
                raise
            # The others wait in the middle of the step, and hear that this rank has ended. That they have not come is no
            # cause of its error: a restart would take it for a lost peer, and know of no dtype.
            logger.warning("this rank failed where the others cannot follow, and ends: %s", exc.problem)
            raise error from error.__cause__
        return [_Statement.from_text(text) for text in texts]


def _failure_in(statements: Sequence[_Statement], guard: Guard) -> Failure:
    """Return the failure of the lowest rank that has one of its own; NaN that all see is one of nobody."""
    for rank, statement in enumerate(statements):
        if statement.kind:
            message = f"rank {rank}: {statement.problem}"
            kind, module = FailureKind(statement.kind), statement.module or None
            return Failure(kind, message, guard.dtype(), module=module, step=guard.step())
    return Failure(FailureKind.NONFINITE, _NONFINITE, guard.dtype(), step=guard.step())


def _candidates(statements: Sequence[_Statement], failure: Failure) -> Iterator[Dtype]:
    """Yield the dtypes that are left to all ranks, best first for the lowest one that has failed; the same on all."""
    first = next((statement for statement in statements if statement.kind), statements[0])
    for dtype in map(dtype_named, first.ladder):
        is_narrower = failure.dtype is not None and dtype.largest < failure.dtype.largest
        if failure.kind is FailureKind.NONFINITE and is_narrower:
            continue
        if all(dtype.name in statement.ladder for statement in statements):
            yield dtype


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Yield the shapes of a step, rounded up to powers of two: a mask that grows with each token is new a few times."""
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, torch.Tensor):
            yield name, value.dtype, *(1 << max(size - 1, 0).bit_length() for size in value.shape)
