"""The ranks of a job: found where torch.distributed is up, and connected once."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from safe_dtype.ranks import Vote, VoteTally, World, cast_vote, current_board, current_world, known_world
from safe_dtype.ranks.world import FULL_MESH, absent, lazy_group

from .processes import Launch, begin_case, run_ranks


@pytest.fixture
def leaves_no_group() -> Iterator[None]:
    """End the default process group after the test."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_no_process_group() -> None:
    """A process that is alone has no world."""
    assert current_world() is None
    assert known_world() is None


@pytest.mark.usefixtures("leaves_no_group")
def test_one_rank() -> None:
    """Nor has a job of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert current_world() is None


@pytest.mark.usefixtures("leaves_no_group")
def test_ranks_that_are_not_there() -> None:
    """Nor has torch's fake backend, in which a process plays one rank of many."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    assert current_world() is None


@pytest.mark.parametrize("absentees", [(), (0,), (7,), (3, 4, 12), tuple(range(13))])
def test_absent_ranks(absentees: tuple[int, ...]) -> None:
    """Those that have not said that they are here are found, with few questions to the store."""
    store = dist.HashStore()
    for rank in set(range(13)) - set(absentees):
        store.set(f"here/{rank}", b"1")
    assert absent(store, range(13)) == absentees


def test_a_large_world_is_no_full_mesh() -> None:
    """Its ranks connect only to those with which they vote."""
    size, store = FULL_MESH + 2, dist.HashStore()
    before = psutil.Process().num_fds()
    with ThreadPoolExecutor(size) as threads:
        groups = list(threads.map(lambda rank: lazy_group(store, rank, size), range(size)))
        worlds = [World(rank, size, group, store, seconds=20) for rank, group in enumerate(groups)]
        tallies = list(threads.map(lambda world: cast_vote(world, Vote.OK, world.rank), worlds))
    assert tallies == [VoteTally(Vote.OK, 0, 0)] * size
    assert psutil.Process().num_fds() - before < size * (size - 1) / 2


def connects_again_and_again(folder: Path) -> list[int]:
    """Make default groups one after the other, with groups of a single rank before the world."""
    assert current_board() is not None  # before there is a default group: rank 0 holds the store for it
    rank, votes = int(os.environ["RANK"]), []
    for number in range(3):
        begin_case(f"default group {number}")
        dist.init_process_group("gloo")
        for _ in range(number):
            dist.new_group([0])  # a rank that is not in it does not count it
        votes.append(cast_vote(current_world(), Vote.RETRY if rank else Vote.OK).rank)
        dist.barrier()
        dist.destroy_process_group()
        meet_without_store(folder / f"{number}", rank)
    return votes


def meet_without_store(flag: Path, rank: int) -> None:
    """Return when the store of the last default group has ended: before that torch itself cannot make another one."""
    gc.collect()
    if rank:
        while _answers(int(os.environ["MASTER_PORT"])):
            time.sleep(0.01)
        flag.touch()
    while not flag.exists():
        time.sleep(0.01)


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_worlds_one_after_the_other(tmp_path: Path) -> None:
    """Ranks connect whatever groups they have made before, and the store of a default group ends with it."""
    assert run_ranks(connects_again_and_again, 2, tmp_path, launch=Launch(joins=False)) == [[1, 1, 1]] * 2
