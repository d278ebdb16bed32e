"""One attempt at a window: it is watched while it runs, and voted on before any optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Protocol

import torch

from ..errors import TrainingLoopError
from ..guarding.entries.nesting import trained
from ..ranks.schedule import Schedules
from .judge_numbers import Numbers
from .loop import Loop

_NOTHING_LEFT = (  # what is wrong, and what to do
    "`next()` found nothing more inside of an attempt, which would take other batches where it runs again",
    "take them before: `for window in guard.windows(loader, micro_batches)` ends with the data, and so does a "
    "`batch = next(iterator)` above `for attempt in guard.attempts()`",
)


class _UnwindError(BaseException):
    """Leaves a loop in which the vote was not unanimous. No `except Exception` of the caller's stops it."""


class Settle(Protocol):
    """Decides on an attempt, together with the other ranks."""

    def leave(self) -> None:
        """Stop to watch the collectives of the ranks, however the attempt has ended."""

    def pass_begins(self) -> None:
        """Note that a backward pass begins."""

    def numbers(self, numbers: Numbers, *, steps: bool) -> bool:
        """Whether all ranks have fit numbers; where not, everything is ready for another attempt."""

    def error(self, error: Exception, numbers: Numbers) -> bool:
        """Whether another attempt is to follow on `error`, after these numbers; where not, it is the caller's."""


class WindowAttempt:
    """One attempt at a window: `with attempt:` around the passes and the step of it.

    Attributes:
        is_done: Whether the window is through: its step was made, and nothing of it is run again.
    """

    def __init__(
        self, loop: Loop, settle: Settle, is_last: Callable[[], bool | None], schedules: Schedules,
        around: Sequence[AbstractContextManager[Any]],
    ) -> None:  # fmt: skip
        self._loop, self._settle, self._schedules, self._around = loop, settle, schedules, around
        self.is_last = is_last
        self._numbers = Numbers()
        self._stack = ExitStack()
        self._has_voted = False
        self.was_entered = self.is_running = False
        self.is_done = False

    @property
    def has_stepped(self) -> bool:
        """Whether an optimizer was allowed to step."""
        return self._has_voted and self.is_done

    def __enter__(self) -> WindowAttempt:
        self.was_entered = self.is_running = True
        self._stack.enter_context(trained())
        self._stack.enter_context(self._loop.watched(self))
        for context in self._around:
            self._stack.enter_context(context)
        return self

    def loss(self, loss: torch.Tensor) -> None:
        """Note a loss, before its backward pass."""
        if self._has_voted:
            raise TrainingLoopError("there is a backward pass after the optimizer step of the window")
        self._settle.pass_begins()
        self._numbers.add_loss(loss)
        self._schedules.backward_begins()

    def backward_ended(self) -> None:
        """Note that a backward pass has ended well."""
        self._schedules.backward_ended()

    def norm(self, norm: torch.Tensor, parameters: Iterable[torch.Tensor]) -> None:
        """Note a norm that was computed for clipping."""
        self._numbers.add_norm(norm, parameters)

    def step(self) -> None:
        """Vote, before the first optimizer of the window steps.

        Raises:
            _UnwindError: If any rank has found something: nobody steps.
        """
        if self._has_voted:
            return
        self._has_voted = True
        if not self._settle.numbers(self._numbers, steps=True):
            raise _UnwindError
        self.is_done = True
        self._loop.stepped()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            self._stack.close()
            return self._ends(error)
        finally:
            self.is_running = False
            self._settle.leave()  # last: what a rank that failed owes the others is known from what was watched

    def _ends(self, error: BaseException | None) -> bool:
        """Return whether the error is dealt with."""
        if isinstance(error, _UnwindError):
            return True
        if error is None and not self._has_voted:
            self.is_done = self._settle.numbers(self._numbers, steps=False)
        if not isinstance(error, Exception):
            return False
        # After the vote the step is made, on all ranks.
        is_settled = not self._has_voted and self._settle.error(error, self._numbers)
        if isinstance(error, StopIteration):
            raise TrainingLoopError(*_NOTHING_LEFT) from error
        return is_settled
