"""What an engine of several ranks has to offer, for a rank that failed to stay in step with the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from .fsdp2 import is_sharded


class OutOfStepError(Exception):
    """A rank that failed cannot run what it owes the others: its process has to end. The text says why."""


class Schedule(Protocol):
    """The collectives that one engine runs in a window: forward and backward passes up to a vote."""

    def sees(self, batches: Sequence[Any]) -> None:
        """Note the micro-batches of the window that is about to begin."""

    def begin(self) -> None:
        """Watch a window from here."""

    def around(self) -> AbstractContextManager[Any]:
        """Return what is to be around the passes of a window."""

    def end(self, *, is_whole: bool) -> None:
        """Stop to watch; `is_whole`: no rank failed in it."""

    def backward_begins(self) -> None:
        """Note that a backward pass begins: what runs now is of the engine."""

    def backward_ended(self) -> None:
        """Note that it has ended well."""

    def program_ran(self) -> None:
        """Note that what has run since is of the program, and that every rank runs it, also one that failed."""

    def owes(self) -> bool:
        """Whether a rank that fails in this window has to run collectives of this engine in the place of its program."""

    def hidden_error(self) -> Exception | None:
        """Return the error of this rank that has not come out: in its place it went on with NaN."""

    def keep(self, error: BaseException) -> float | None:
        """After `error` on this rank: run all that it owes the others until the vote.

        Returns:
            For how many seconds to wait for the others, where they may not come to the vote; None: they come.

        Raises:
            OutOfStepError: If that is not possible.
        """

    def reset(self) -> None:
        """After a vote that was not OK, on every rank: begin as if the window had not been."""


class Schedules:
    """The engines of all models of a loop: what is said to one is said to all, in their order."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._all = [schedule for model in models for schedule in schedules_of(model)]

    def __bool__(self) -> bool:
        return bool(self._all)

    def sees(self, batches: Sequence[Any]) -> None:
        """Note the micro-batches of the window that is about to begin."""
        for schedule in self._all:
            schedule.sees(batches)

    def begin(self) -> None:
        """Watch a window from here."""
        for schedule in self._all:
            schedule.begin()

    def around(self) -> list[AbstractContextManager[Any]]:
        """Return what is to be around the passes of a window."""
        return [schedule.around() for schedule in self._all]

    def end(self, *, is_whole: bool) -> None:
        """Stop to watch; `is_whole`: no rank failed in it."""
        for schedule in self._all:
            schedule.end(is_whole=is_whole)

    def backward_begins(self) -> None:
        """Note that a backward pass begins."""
        for schedule in self._all:
            schedule.backward_begins()

    def backward_ended(self) -> None:
        """Note that it has ended well."""
        for schedule in self._all:
            schedule.backward_ended()

    def program_ran(self) -> None:
        """Note that what has run since is of the program, and that every rank runs it, also one that failed."""
        for schedule in self._all:
            schedule.program_ran()

    def hidden_error(self) -> Exception | None:
        """Return the first error of this rank that has not come out."""
        return next(filter(None, (schedule.hidden_error() for schedule in self._all)), None)

    def keep(self, error: BaseException) -> float | None:
        """After `error` on this rank: run all that it owes the others until the vote.

        Returns:
            For how many seconds to wait for the others at the vote; None: as ever.

        Raises:
            OutOfStepError: If that is not possible.
        """
        if sum(schedule.owes() for schedule in self._all) > 1:
            raise OutOfStepError("several models reduce gradients in one window, in an order that nobody knows")
        limits = [schedule.keep(error) for schedule in self._all]
        return min((limit for limit in limits if limit is not None), default=None)

    def reset(self) -> None:
        """After a vote that was not OK, on every rank: begin as if the window had not been."""
        for schedule in self._all:
            schedule.reset()


def schedules_of(model: nn.Module) -> list[Schedule]:
    """Return the schedules of the engines in `model`, which may be compiled."""
    from torch.nn.parallel import DistributedDataParallel

    from .ddp.ddp_schedule import DdpSchedule
    from .sharded_schedule import ShardedSchedule

    wrapped: list[Schedule] = [
        DdpSchedule(module) for module in model.modules() if isinstance(module, DistributedDataParallel)
    ]
    return [*wrapped, ShardedSchedule(model)] if is_sharded(model) else wrapped
