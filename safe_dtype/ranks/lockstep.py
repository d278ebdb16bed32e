"""Ranks that generate in lockstep: where one has failed in its dtype, all make that generation anew in the next one."""

from __future__ import annotations

import logging

from ..errors import NoDtypeLeft, RanksDisagreeError, RanksError, RemoteFailure
from ..facts import Dtype
from ..guarding import Attempt, Failure, NotPossible
from ..guarding.classify import first_line, text_of
from ..guarding.recover import change_dtype
from ..guarding.state import Guard
from .ballot import Vote, cast_vote
from .gather import gather_texts
from .model_copy import ModelCopy, agreed_dtype, copy_of, failure_of
from .world import World

logger = logging.getLogger(__name__)


class Lockstep:
    """One model's part in generations that all ranks make together: a vote at the end of each."""

    begin_anew = True

    def __init__(self, world: World, key: str, seconds: float | None = None) -> None:
        self._world = world
        self._key = key  # what the ranks call the model
        self._seconds = world.seconds if seconds is None else seconds
        self._agreed: Dtype | None = None  # the same on all ranks
        self._version = -1  # of the copy that is known to be in it

    def join(self, guard: Guard) -> None:
        """Meet with all ranks, in the lowest dtype that any of them is in.

        Raises:
            RanksDisagreeError: If they hold different models.
        """
        copies = self._copies(guard)
        models = {copy.model for copy in copies}
        if len(models) > 1:
            by_model = tuple(
                (tuple(one.rank for one in copies if one.model == model), model) for model in sorted(models)
            )
            raise RanksDisagreeError("model", by_model, "load the same checkpoint with the same class on every rank")
        self._meet(guard, copies)

    def before_generate(self, guard: Guard) -> None:
        """Begin at once: the vote is at the end."""

    def after_generate(self, guard: Guard, error: Exception | None) -> bool:
        """Vote; return whether a rank has failed in its dtype, so that all make the generation anew in another.

        Raises:
            RemoteFailure: If another rank has ended with an error.
            NoDtypeLeft: If this rank cannot be brought into the dtype of the others.
            PeerLostError: If a rank has ended or does not come.
        """
        if error is not None:
            vote = Vote.FOREIGN
        elif guard.version == self._version or guard.dtype() == self._agreed:
            vote = Vote.OK
        else:
            vote = Vote.FALL_BACK
        try:
            return self._settle(guard, vote, error)
        except RanksError as exc:
            if error is None:
                raise
            logger.warning("while an error ends this generation: %s", exc)
            return False

    def _settle(self, guard: Guard, vote: Vote, error: Exception | None) -> bool:
        tally = cast_vote(self._world, vote, seconds=self._seconds)
        if tally.ok:
            return False
        if tally.vote is Vote.FOREIGN:
            problems = gather_texts(self._world, "" if error is None else _described(error), seconds=self._seconds)
            if error is None:
                raise RemoteFailure(tally.rank, problems[tally.rank])
            return False
        self._meet(guard, self._copies(guard))
        return True

    def _copies(self, guard: Guard) -> list[ModelCopy]:
        own = copy_of(guard, self._key, self._world.rank)
        return [ModelCopy.from_text(text) for text in gather_texts(self._world, own.as_text(), seconds=self._seconds)]

    def _meet(self, guard: Guard, copies: list[ModelCopy]) -> None:
        """Bring this copy into the dtype that all agree on; where one rank cannot, it ends the generation on all."""
        agreed = agreed_dtype(copies)
        change_together(self._world, guard, agreed, failure_of(copies, str(guard.dtype())), seconds=self._seconds)
        self._agreed, self._version = agreed, guard.version


def change_together(
    world: World, guard: Guard, dtype: Dtype, failure: Failure, *, seconds: float | None = None
) -> None:
    """Bring the model into `dtype` on all ranks. Every rank has to call it, with the same dtype.

    Raises:
        NoDtypeLeft: If this rank cannot be brought there.
        RemoteFailure: If another one cannot.
        PeerLostError: If a rank has ended or does not come.
    """
    obstacle = ""
    try:
        change_dtype(guard, dtype, failure)
    except NotPossible as exc:
        obstacle = f"{dtype} is what the ranks agree on, and it cannot go there: {exc}"
    tally = cast_vote(world, Vote.FOREIGN if obstacle else Vote.OK, seconds=seconds)
    if tally.ok:
        return
    obstacles = gather_texts(world, obstacle, seconds=seconds)
    if obstacle:
        raise NoDtypeLeft(failure.message, str(guard.dtype()), (Attempt(str(dtype), obstacle),))
    raise RemoteFailure(tally.rank, obstacles[tally.rank])


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(text_of(error))}"
