"""The vote of all ranks on an attempt at a window, and what decided it."""

from __future__ import annotations

from ...errors import PeerLostError
from ...guarding import FailureKind
from ...ranks import Vote, VoteTally, World, cast_vote
from ..judge_error import reason_in
from ..judge_numbers import Judgement

_KINDS = tuple(FailureKind)
LOSS_ALONE = len(_KINDS)  # in the place of a kind: all gradients are finite


class WindowVotes:
    """The votes on the windows of one guard: all ranks cast them at the same points.

    Args:
        world: The ranks; None: there are no others.
        number: Of the guard in its process, the same on all ranks.
    """

    def __init__(self, world: World | None, number: int) -> None:
        self._world, self._number, self._votes = world, number, 0

    def cast(
        self, judgement: Judgement, kind: FailureKind, error: Exception | None, seconds: float | None
    ) -> tuple[VoteTally, FailureKind, str]:
        """Return the vote of all, and what decided it: an exception before the NaN that it left on the other ranks.

        Raises:
            PeerLostError: If another rank has ended, or does not vote within `seconds`.
        """
        self._votes += 1
        world, key = self._world, f"window/{self._number}/{self._votes}"
        if world is not None and judgement.vote is not Vote.OK:
            world.store.set(f"{key}/{world.rank}", judgement.reason)
            if error is not None and judgement.vote is Vote.FALL_BACK:
                world.store.set(f"{key}/cause", f"{_KINDS.index(kind)} rank {world.rank}: {judgement.reason}")
        try:
            payload = LOSS_ALONE if judgement.is_loss_alone else _KINDS.index(kind)
            tally = cast_vote(world, judgement.vote, payload, seconds=seconds)
        except PeerLostError as exc:
            raise exc from error
        if world is None or tally.vote is Vote.OK or tally.vote is judgement.vote is Vote.FOREIGN:
            return tally, kind, judgement.reason
        if tally.vote is Vote.FALL_BACK and world.store.check([f"{key}/cause"]):
            number, _, reason = world.store.get(f"{key}/cause").decode().partition(" ")
            return tally, _KINDS[int(number)], reason
        kind = FailureKind.NONFINITE if tally.payload == LOSS_ALONE else _KINDS[tally.payload]
        return tally, kind, reason_in(world.store, f"{key}/{tally.rank}", tally.vote)
