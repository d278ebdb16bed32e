"""One vote of all ranks: what it comes to, and what happens when a rank does not vote."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch.distributed as dist

from safe_dtype.errors import PeerLostError
from safe_dtype.ranks import LARGEST_PAYLOAD, Vote, VoteTally, World, ballot, cast_vote, current_world
from safe_dtype.ranks.ballot import LARGEST_RING, packed, unpacked

from .processes import Launch, outcomes_of


def worlds(size: int, seconds: float = 20.0) -> list[World]:
    """Return the worlds of `size` ranks that are threads of this process, connected by sockets as processes are."""
    store = dist.HashStore()

    def world(rank: int) -> World:
        group = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=seconds))
        return World(rank, size, group, store, seconds=seconds)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(world, range(size)))


def cast_by_all(votes: list[tuple[Vote, int]]) -> list[VoteTally]:
    """Return how the vote of several ranks ends on each of them."""
    with ThreadPoolExecutor(len(votes)) as threads:
        return list(threads.map(lambda world, vote: cast_vote(world, *vote), worlds(len(votes)), votes))


@pytest.mark.parametrize(
    ("votes", "tally"),
    [
        pytest.param([(Vote.OK, 3), (Vote.OK, 4)], VoteTally(Vote.OK, 0, 3), id="all-well"),
        pytest.param([(Vote.OK, 3), (Vote.RETRY, 4)], VoteTally(Vote.RETRY, 1, 4), id="the-highest-decides"),
        pytest.param(
            [(Vote.RETRY, LARGEST_PAYLOAD), (Vote.FALL_BACK, 0), (Vote.FALL_BACK, 9)],
            VoteTally(Vote.FALL_BACK, 1, 0),
            id="the-lowest-rank-of-several",
        ),
        pytest.param(
            [(Vote.FOREIGN, 1), (Vote.RESTART, 2)], VoteTally(Vote.FOREIGN, 0, 1), id="foreign-above-restart"
        ),
    ],
)
def test_all_ranks_hear_the_same(votes: list[tuple[Vote, int]], tally: VoteTally) -> None:
    """Every rank hears the highest vote, the lowest rank that gave it, and what that rank added."""
    assert cast_by_all(votes) == [tally] * len(votes)


def test_a_job_of_one_votes_alone() -> None:
    """Without other ranks a vote decides at once."""
    assert cast_vote(None, Vote.FALL_BACK, 7) == VoteTally(Vote.FALL_BACK, 0, 7)


def test_order_of_packed_votes() -> None:
    """The largest integer is that of the lowest rank of the highest vote, up to the last rank and the largest payload."""
    payloads = (0, 1, LARGEST_PAYLOAD)
    ballots = list(product(Vote, (0, 1, 9_999, 2**32 - 1), payloads))
    assert [unpacked(packed(*ballot)) for ballot in ballots] == [VoteTally(*ballot) for ballot in ballots]
    for (vote, rank, payload), (other, other_rank, other_payload) in product(ballots, ballots):
        if (vote, -rank) > (other, -other_rank):
            assert packed(vote, rank, payload) > packed(other, other_rank, other_payload)
    assert packed(Vote.FOREIGN, 0, LARGEST_PAYLOAD) < 2**63


@pytest.mark.parametrize("payload", [-1, LARGEST_PAYLOAD + 1])
def test_payload_out_of_range(payload: int) -> None:
    """A payload that would change the vote is refused."""
    with pytest.raises(ValueError, match=f"payload {payload} is not between 0 and 65535"):
        cast_vote(None, Vote.OK, payload)


def test_a_rank_that_does_not_vote() -> None:
    """A rank that does not come is named, with the seconds that were waited."""
    here, late = worlds(2)
    with pytest.raises(PeerLostError) as caught:
        cast_vote(here, Vote.OK, seconds=0.5)
    assert (caught.value.rank, caught.value.missing) == (0, (late.rank,))
    assert 0.4 < caught.value.seconds < 10
    assert "Rank 0 waited 0.5" in str(caught.value)
    assert "for rank 1: " in str(caught.value)
    assert "Next: " in str(caught.value)


def test_a_rank_that_has_ended() -> None:
    """A rank whose connections are closed is lost at once, and not after the time limit."""
    here, gone = worlds(2, seconds=60)
    gone.group.shutdown()
    object.__setattr__(gone, "group", None)
    with pytest.raises(PeerLostError) as caught:
        cast_vote(here, Vote.OK)
    assert caught.value.seconds < 10


@pytest.mark.parametrize("size", [3, 8, LARGEST_RING, LARGEST_RING + 1, 23, 33])
def test_any_number_of_ranks(size: int) -> None:
    """Every rank hears of one that fails, wherever it is, vote after vote; also where some are ahead of others."""

    def three_votes(world: World) -> list[VoteTally]:
        failing = (size - 1, 0, size // 2)
        return [cast_vote(world, Vote.RETRY if world.rank == rank else Vote.OK, rank) for rank in failing]

    with ThreadPoolExecutor(size) as threads:
        tallies = list(threads.map(three_votes, worlds(size)))
    assert tallies == [[VoteTally(Vote.RETRY, rank, rank) for rank in (size - 1, 0, size // 2)]] * size


def loses_one(kind: str, largest_ring: int) -> None:
    """Vote twice; before the second vote one rank is killed, or goes away for longer than the others wait."""
    ballot.LARGEST_RING = largest_ring
    world = current_world()
    assert world is not None
    assert cast_vote(world, Vote.OK).ok
    if world.rank == 2 and kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if world.rank == 2:
        time.sleep(6)
        os._exit(0)
    started = time.monotonic()
    try:
        cast_vote(world, Vote.OK, seconds=60 if kind == "killed" else 1)
    except PeerLostError as exc:
        outcome = exc.rank, exc.missing, time.monotonic() - started < 12
        time.sleep(0 if world.rank else 1)  # with rank 0 the store would end
        (Path(os.environ["OUTCOMES"]) / f"{world.rank}").write_text(repr(outcome))
    os._exit(0)


@pytest.mark.parametrize("kind", ["killed", pytest.param("hangs", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "largest_ring", [pytest.param(LARGEST_RING, id="ring"), pytest.param(1, id="rounds", marks=pytest.mark.slow)]
)
def test_all_others_name_the_rank_that_is_gone(kind: str, largest_ring: int, tmp_path: Path) -> None:
    """They end together, soon, and each knows which one it was, also those that wait for it only at second hand."""
    launch = Launch(environments={None: {"OUTCOMES": str(tmp_path)}}, patience=20)
    outcomes_of(loses_one, 5, kind, largest_ring, launch=launch)
    outcomes = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert outcomes == {str(rank): repr((rank, (2,), True)) for rank in (0, 1, 3, 4)}
