"""One vote of all ranks: a single integer each, of which the highest binds everybody."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist

from ..errors import PeerLostError
from .world import World, absent

logger = logging.getLogger(__name__)

_PAYLOAD_BITS, _RANK_BITS = 16, 32
_LAST_RANK: int = 2**_RANK_BITS - 1
LARGEST_PAYLOAD: int = 2**_PAYLOAD_BITS - 1
LARGEST_RING = 16  # ranks; in a larger world a ring, which takes 2 (size - 1) steps one after the other, is too slow
_IS_GONE = 1 << _PAYLOAD_BITS + _RANK_BITS + 8  # in place of a ballot, with the rank that is gone
# To tell that a rank is gone, for those who wait for it at second hand: they wait longer with each round.
_SECONDS_TO_TELL = 1.0
_SECONDS_FOR_ROLL_CALL = 2.0
_CALLERS = 16  # ranks that call the roll: the store is one process, which answers some 20,000 questions a second


class Vote(IntEnum):
    """What a rank says of its own part of a step. The highest vote of all ranks decides for all."""

    OK = 0
    RETRY = 1  # the same again, in the same dtype: float16 overflowed, and its loss scale is halved
    FALL_BACK = 2  # the same again, in the next dtype
    RESTART = 3  # the processes have to start anew: this rank cannot go on
    FOREIGN = 9  # an error that no dtype cures: it ends the job on every rank


@dataclass(frozen=True, slots=True)
class VoteTally:
    """How a vote ended: the same on every rank."""

    vote: Vote  # the highest
    rank: int  # the lowest that gave it
    payload: int  # what that rank added

    @property
    def ok(self) -> bool:
        """Whether every rank voted OK."""
        return self.vote is Vote.OK


def cast_vote(world: World | None, vote: Vote, payload: int = 0, *, seconds: float | None = None) -> VoteTally:
    """Give this rank's vote, wait for those of all others, and return what they come to.

    Every rank has to call it, the same number of times. It is a few messages of 8 bytes a rank, 14 among 10,000, on the
    private group: they cannot be mixed up with what the model sends, and touch no accelerator.

    Args:
        world: The ranks; None is a job of one, whose vote decides.
        vote: What this rank says.
        payload: What all ranks are to hear of the rank that decides, from 0 to `LARGEST_PAYLOAD`.
        seconds: How long to wait for the slowest rank; None: as long as the world says.

    Raises:
        PeerLostError: If a rank has ended, or has not voted within `seconds`.
        ValueError: If `payload` is out of range.
    """
    if not 0 <= payload <= LARGEST_PAYLOAD:
        raise ValueError(f"payload {payload} is not between 0 and {LARGEST_PAYLOAD}")
    if world is None:
        return VoteTally(Vote(vote), 0, payload)
    highest = _by_ring if world.size <= LARGEST_RING else _by_rounds
    return unpacked(highest(world, packed(vote, world.rank, payload), world.seconds if seconds is None else seconds))


def _by_ring(world: World, ballot: int, seconds: float) -> int:
    """Return the largest integer of all ranks, which gloo's own thread fetches: the quickest where cores are scarce."""
    highest = torch.tensor([ballot], dtype=torch.int64, device="cpu")
    options = dist.AllreduceOptions()
    options.reduceOp = dist.ReduceOp.MAX  # type: ignore[assignment]  # its stub, not its type
    options.timeout = timedelta(seconds=seconds)
    started = time.monotonic()
    try:
        world.group.allreduce([highest], options).wait()
    except RuntimeError as exc:
        raise lost_peer(world, exc, time.monotonic() - started) from exc
    return int(highest.item())


def _by_rounds(world: World, ballot: int, seconds: float) -> int:
    """Return the largest integer of all ranks, in log2(size) rounds.

    In each round a rank tells another one, twice as far away as in the round before, the largest that it has heard of:
    after log2(size) rounds everybody knows it, for any number of ranks.

    Who misses a rank keeps to its rounds, and tells that instead: it is larger than any vote. So all ranks end together,
    and know which one is gone.
    """
    started, distance, patience, cause = time.monotonic(), 1, seconds, None
    while distance < world.size:
        limit = _SECONDS_TO_TELL if ballot >= _IS_GONE else max(started + patience - time.monotonic(), 0.001)
        other = (world.rank - distance) % world.size
        outgoing = torch.tensor([ballot], dtype=torch.int64, device="cpu")
        incoming = torch.empty(1, dtype=torch.int64, device="cpu")
        try:
            sent = world.group.send([outgoing], (world.rank + distance) % world.size, 0)
            world.group.recv([incoming], other, 0).wait(timedelta(seconds=limit))
            ballot, other = max(ballot, int(incoming)), (world.rank + distance) % world.size
            sent.wait(timedelta(seconds=limit))
        except RuntimeError as exc:
            if ballot < _IS_GONE:
                has_waited = "Timed out" in str(exc) or time.monotonic() - started >= patience
                cause, ballot = exc, _IS_GONE | (_LAST_RANK - _gone(world, other, has_waited=has_waited))
        distance *= 2
        patience += _SECONDS_TO_TELL  # those who wait for a rank at second hand are to be told of it
    if ballot >= _IS_GONE:
        problem = "another rank has found it gone" if cause is None else _first_line(cause)
        missing = _LAST_RANK - (ballot & _LAST_RANK)
        raise PeerLostError(world.rank, time.monotonic() - started, problem, (missing,)) from cause
    return ballot


def _gone(world: World, other: int, *, has_waited: bool) -> int:
    """Return the rank that is gone, where `other` did not answer.

    A rank that has waited in vain has no connections any more, for gloo closes all of them then: to those that wait for it,
    it seems to have ended. So it says in the store which one it has waited for.
    """
    try:
        if not has_waited:
            world.store.wait(["gone"], timedelta(seconds=_SECONDS_TO_TELL))
    except RuntimeError:
        logger.debug("nobody has waited in vain: rank %d has ended", other)
    try:
        return int(world.store.compare_set("gone", "", str(other)))
    except RuntimeError:  # the store has ended, with rank 0
        return other


def packed(vote: Vote, rank: int, payload: int) -> int:
    """Return vote, rank and payload as one integer below 2**52. The largest is that of the lowest rank of the highest vote."""
    return (vote << _RANK_BITS | (_LAST_RANK - rank)) << _PAYLOAD_BITS | payload


def unpacked(ballot: int) -> VoteTally:
    """Return what `packed` has put into one integer."""
    rank = _LAST_RANK - (ballot >> _PAYLOAD_BITS & _LAST_RANK)
    return VoteTally(Vote(ballot >> _PAYLOAD_BITS + _RANK_BITS), rank, ballot & LARGEST_PAYLOAD)


def lost_peer(world: World, exc: BaseException, waited: float) -> PeerLostError:
    """Return the error for a message that did not arrive, with the ranks that do not answer any more.

    Those that are there have the same failure at hand, and say so in the store.
    """
    _close(world)
    others = [rank for rank in range(world.size) if rank != world.rank]
    missing: tuple[int, ...] = ()
    try:
        world.store.set(f"lost a peer/{world.rank}", b"1")
        is_caller = world.store.add("have lost a peer", 1) <= _CALLERS or world.rank == 0  # which has the store
        ending = time.monotonic() + _SECONDS_FOR_ROLL_CALL
        while is_caller and (missing := absent(world.store, others, "lost a peer")) and time.monotonic() < ending:
            time.sleep(0.1)
    except RuntimeError:
        pass  # the store has ended with rank 0
    return PeerLostError(world.rank, waited, _first_line(exc), missing)


def _close(world: World) -> None:
    """End this rank's connections, so that those who wait for it notice: gloo ends all of them after a wait in vain."""
    for distance in range(1, min(world.size, LARGEST_RING)):
        nothing = torch.empty(1, dtype=torch.int64, device="cpu")
        try:
            world.group.recv([nothing], (world.rank + distance) % world.size, 1).wait(timedelta(milliseconds=1))
        except RuntimeError as exc:
            if "Timed out" in str(exc):
                return


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0][:200]
