"""What an engine of several ranks has to offer, for a rank that failed to stay in step with the others."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from .fsdp2 import is_sharded


class OutOfStepError(Exception):
    """A rank that failed cannot run what it owes the others: its process has to end. The text says why."""


class Schedule(Protocol):
    """The collectives that one engine runs in a window: forward and backward passes up to a vote."""

    def sees(self, batches: Iterable[Any]) -> None:
        """Note the micro-batches of the window that is about to begin."""

    def begin(self) -> None:
        """Watch a window from here."""

    def around(self) -> AbstractContextManager[Any]:
        """Return what is to be around the passes of a window."""

    def end(self, *, is_whole: bool) -> None:
        """Stop to watch; `is_whole`: no rank failed in it."""

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


def schedules_of(model: nn.Module) -> list[Schedule]:
    """Return the schedules of the engines in `model`, which may be compiled."""
    from torch.nn.parallel import DistributedDataParallel

    from .ddp import DdpSchedule
    from .sharded_schedule import ShardedSchedule

    wrapped: list[Schedule] = [
        DdpSchedule(module) for module in model.modules() if isinstance(module, DistributedDataParallel)
    ]
    return [*wrapped, ShardedSchedule(model)] if is_sharded(model) else wrapped
