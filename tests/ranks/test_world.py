"""The ranks of a job: found where torch.distributed is up, and connected once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch.distributed as dist

from safe_dtype.ranks import Vote, VoteTally, World, cast_vote, current_world, known_world
from safe_dtype.ranks.world import FULL_MESH, absent, lazy_group


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
