"""One load of one model by the ranks of a job: they meet at the board, and go on with one plan."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from ...checkpoints.config import DTYPE_NAMES
from ...devices import detect_one
from ...errors import NoSuchDeviceError, PeerLostError, RemoteFailure
from ...errors.ranks import named_ranks
from ...facts import FLOAT32, CheckpointFacts, DeviceFacts, LearnedFailure, MemoryFacts
from ...loading.meeting import Facts
from ...loading.plan_request import is_split, is_split_on_loading
from ...loading.request import Request
from ...planning import Plan, Policy, combine
from ..failed_dtypes import met_in_this_launch
from ..long_wait import long_wait
from ..rendezvous import init_process_group
from .board import Board, Groups, current_board, launch_here
from .consensus import Consensus, Contribution, agree, agreed_here, check_passed_plans, check_plans, digest
from .started import devices_at_start, shared

logger = logging.getLogger(__name__)

SECONDS_TO_MEET = 60.0  # for ranks of whose devices nothing is known: a plan without them may be wrong
# For ranks whose devices are known, or do not matter to a plan that is passed: it is right without them, and only its
# proof waits.
SECONDS_TO_PROVE = 10.0
SECONDS_ONCE_ALONE = 1.0  # after some have stayed away once: this job loads models on single ranks
SECONDS_TO_MEASURE = 1800.0  # for the one rank that loads and runs the model to measure it
_SECONDS_TO_BE_HEARD = 10.0  # that rank 0, which may hold the board, waits for the others before it ends with an error
_ROOM = 1.1  # of the bytes in float32, which is what a trial loads

_loads: Counter[str] = Counter()  # of this process, by what is loaded
_stayed_away: list[str] = []  # loads to which not all ranks came


@contextmanager
def meet(request: Request, policy: Policy | str | None, plan: Plan | None = None) -> Iterator[MeetingOfRanks | None]:
    """Open the meeting for one load. None in a job of one, and where nobody can be reached.

    An error that ends it before this rank has brought its facts ends the others with `RemoteFailure`.
    """
    if is_split_on_loading(request) and launch_here() and not dist.is_initialized():
        init_process_group()  # the load itself would, with a time limit of two hours
    board = current_board()
    if board is None or not _is_reachable(board):
        yield None
        return
    meeting = MeetingOfRanks(board, request, str(Policy.of(policy) or Policy()), plan)
    try:
        yield meeting
    except Exception as exc:  # whatever it is, the others must not wait for this rank
        meeting.fail(exc)
        raise


class MeetingOfRanks:
    """The meeting for one load, as `loading.meeting.Meeting` describes it."""

    def __init__(self, board: Board, request: Request, policy: str, plan: Plan | None = None) -> None:
        self._board, self._request, self._policy = board, request, policy
        self._passed_plan = None if plan is None else (digest(plan), plan.summary)
        what = _what_is_loaded(request)
        _loads[what] += 1
        self._name = f"load {what} {_loads[what]}"
        self._has_contributed = False
        self._consensus: Consensus | None = None
        self._tries = False  # on this rank, now

    def check_passed_plan(self) -> None:
        """Raise on all ranks unless the callers of all have passed the same plan."""
        own = Contribution(self._policy, passed_plan=self._passed_plan)
        groups = self._gathered(own, min(self._seconds(), SECONDS_TO_PROVE))
        check_passed_plans([*groups, ((self._board.rank,), own)])

    def agreed(self, checkpoint: CheckpointFacts, measure: Callable[[], Facts]) -> Facts:
        """Return the facts that all ranks plan from."""
        problem = ""
        try:
            mine, checkpoint = measure()
        except NoSuchDeviceError:
            raise
        except (RuntimeError, OSError) as exc:  # the others need not wait for a device that cannot be measured
            problem = f"{type(exc).__name__}: {exc}".partition("\n")[0]
            logger.warning(
                "this rank's device cannot be measured, and float32 is all that is taken to run: %s", problem
            )
            mine = replace(
                combine([detect_one(one) for one in self._request.devices]), memory=MemoryFacts(0, 0, "ranks")
            )
        if mine.memory.limited_by == "ranks" and not is_split(self._request):
            mine = replace(
                mine, memory=MemoryFacts(0, 0, "copies")
            )  # the whole model on every rank, as far as is known
        contribution = Contribution(
            self._policy, checkpoint.source, checkpoint.identity, shared(mine), problem, self._lessons(checkpoint),
            passed_plan=self._passed_plan,
        )  # fmt: skip
        groups = self._gathered(contribution, self._seconds())
        check_passed_plans([*groups, ((self._board.rank,), contribution)])
        absent = self._absent(groups)
        self._consensus = agree(groups, absent)
        if self._board.rank not in self._consensus.ranks:  # it came when the others had gone on
            mine_as_well = agree([*groups, ((self._board.rank,), contribution)], absent)  # its checkpoint and policy
            if _kinds(mine_as_well.device) != _kinds(self._consensus.device):
                logger.warning(
                    "%s: %s planned it before this rank came, without its device (%s), which may be slower in that dtype",
                    checkpoint.source, named_ranks(self._consensus.ranks), mine.name,
                )  # fmt: skip
        return agreed_here(self._consensus, mine, checkpoint)

    def by_one(self, plan: Plan, device: DeviceFacts, checkpoint: CheckpointFacts, trial: Callable[[], Plan]) -> Plan:
        """Return what `trial` comes to on the one rank that runs it, whose error ends all ranks.

        It is `plan` for a model that is split: no rank has room for all of it.
        """
        if device.memory.limited_by == "ranks":
            return plan
        name, measuring = f"{self._name} trial", self._agreed_before().measures
        if measuring == self._board.rank:
            self._tries = True
            plan = trial() if self._has_room(device, checkpoint) else plan
            self._tries = False
            self._board.post(name, plan)
            return plan
        outcome = self._board.wait(name, SECONDS_TO_MEASURE)
        if outcome is None:
            problem = "it was to measure the model for all ranks, and has not come back"
            raise PeerLostError(self._board.rank, SECONDS_TO_MEASURE, problem, (measuring,))
        if isinstance(outcome, str):
            raise RemoteFailure(measuring, outcome)
        tried: Plan = outcome
        return replace(tried, device=plan.device)

    def prove(self, plan: Plan) -> None:
        """Raise on all ranks that take part unless all have made this plan."""
        made = (digest(plan), plan.summary)
        ranks = self._agreed_before().ranks
        if self._board.rank in ranks:
            plans = self._board.gather(f"{self._name} plan", made, SECONDS_TO_MEET, among=ranks)
        else:  # the others have gone on
            plans = (*self._board.left(f"{self._name} plan"), ((self._board.rank,), made))
        for failed, outcome in plans:
            if isinstance(outcome, str):
                raise RemoteFailure(failed[0], outcome)
        check_plans(plans)

    def fail(self, error: Exception) -> None:
        """Tell the other ranks that this one ends, where they would wait for it."""
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        try:
            if self._tries:
                self._board.post(f"{self._name} trial", text)
            elif self._consensus is not None:
                self._board.leave(f"{self._name} plan", text, self._consensus.ranks)
            elif not self._has_contributed:  # else what all have brought ends all of them
                self._board.leave(self._name, Contribution(self._policy, failure=text))
            self._leave()
        except PeerLostError:
            logger.debug("nobody is left to hear of it")

    def _leave(self) -> None:
        """End with the others. Rank 0 leaves last: the board may end with it, and they have to read why they end."""
        among = None if self._consensus is None else self._consensus.ranks
        self._board.leave(f"{self._name} over", 1, among)
        if self._board.rank == 0:
            self._board.wait(f"{self._name} over/all", _SECONDS_TO_BE_HEARD)

    def _gathered(self, contribution: Contribution, seconds: float) -> Groups:
        self._has_contributed = True
        # Once torch has connected the ranks, all are there.
        with nullcontext() if dist.is_initialized() else long_wait(seconds):
            groups = self._board.gather(self._name, contribution, seconds)
        missing = sorted(set(range(self._board.size)) - {rank for ranks, _ in groups for rank in ranks})
        if missing and self._board.rank not in missing:
            _stayed_away.append(self._name)
            logger.warning(
                "%s: %s %s not come to load it within %.3g s; it is planned without, for the devices that are known",
                self._request.source, named_ranks(missing), "has" if len(missing) == 1 else "have", seconds,
            )  # fmt: skip
        return groups

    def _lessons(self, checkpoint: CheckpointFacts) -> tuple[LearnedFailure, ...]:
        """Return what guarded runs have met here, and what has ended an earlier attempt of this launch."""
        met = met_in_this_launch(self._request.devices, checkpoint.source)
        return tuple(dict.fromkeys([*checkpoint.lessons, *met]))

    def _seconds(self) -> float:
        if _stayed_away:
            return SECONDS_ONCE_ALONE
        known = sum(len(ranks) for ranks, _ in devices_at_start(self._board))
        return SECONDS_TO_PROVE if known == self._board.size else SECONDS_TO_MEET

    def _absent(self, groups: Groups) -> list[tuple[tuple[int, ...], DeviceFacts]]:
        """Return what is known of the ranks that have not come."""
        here = {rank for ranks, _ in groups for rank in ranks}
        known = [
            (tuple(rank for rank in ranks if rank not in here), facts)
            for ranks, facts in devices_at_start(self._board)
        ]
        return [(ranks, facts) for ranks, facts in known if ranks]

    def _has_room(self, device: DeviceFacts, checkpoint: CheckpointFacts) -> bool:
        """Whether a trial, which loads the model in float32, fits now on every device of this rank that it may use."""
        memory = combine([detect_one(one) for one in device.device.split(",")]).memory
        return memory.has_room_for(checkpoint.parameters * FLOAT32.itemsize * _ROOM)

    def _agreed_before(self) -> Consensus:
        if self._consensus is None:
            raise RuntimeError("a plan is proven after the facts are agreed on")
        return self._consensus


def _is_reachable(board: Board) -> bool:
    try:
        board.read("anything")
    except PeerLostError as exc:
        logger.warning("%s This rank plans alone.", exc.problem)
        return False
    return True


def _what_is_loaded(request: Request) -> str:
    """Return one name for what a call loads, the same on every rank that makes the same call."""
    names = ("revision", "subfolder", "variant", "gguf_file", *DTYPE_NAMES)
    words = [os.fspath(request.source or ""), *(str(request.arguments.get(name)) for name in names)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _kinds(facts: DeviceFacts) -> Any:
    """Return what makes two devices equal for a plan, but for how fast they were this time."""
    return facts.name, tuple((one.dtype, one.op, one.kind) for one in facts.verdicts)
