"""The ranks of a job: found where torch.distributed is up, and connected once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from safe_dtype.ranks import current_world, known_world


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
