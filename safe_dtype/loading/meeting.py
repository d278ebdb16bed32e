"""Where ranks that load one model agree on its plan: the seam, which `ranks` fills in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ..facts import CheckpointFacts, DeviceFacts
from ..planning import Plan, Policy
from .request import Request

Facts = tuple[DeviceFacts, CheckpointFacts]


class Meeting(Protocol):
    """One load of one model by several ranks, for as long as it is planned."""

    def check_passed_plan(self) -> None:
        """Raise on all ranks unless all were given the plan that this one was given, and measure nothing."""

    def agreed(self, checkpoint: CheckpointFacts, measure: Callable[[], Facts]) -> Facts:
        """Return the facts that all ranks plan from, in exchange for what `measure` returns on this one."""

    def by_one(self, plan: Plan, device: DeviceFacts, checkpoint: CheckpointFacts, trial: Callable[[], Plan]) -> Plan:
        """Return what `trial` comes to, which loads and runs the model: on one rank, for all. `plan`: without it."""

    def prove(self, plan: Plan) -> None:
        """Raise on all ranks unless all have made this plan."""


Meet = Callable[[Request, Policy | str | None, Plan | None], AbstractContextManager[Meeting | None]]
_meet: list[Meet] = []


def meet_by(meet: Meet) -> None:
    """Have every load go through `meet`, which opens a meeting for each; None in a job of one."""
    _meet[:] = [meet]


def meeting_for(
    request: Request, policy: Policy | str | None, plan: Plan | None = None
) -> AbstractContextManager[Meeting | None]:
    """Return the context in which one load is planned. An error that ends it is told to the other ranks.

    `plan`: what the caller passes, if anything.
    """
    return _meet[0](request, policy, plan) if _meet else nullcontext()
