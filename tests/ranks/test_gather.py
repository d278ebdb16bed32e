"""What every rank has to say reaches all of them, in their order, however long it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from ranks.test_ballot import worlds

from safe_dtype.errors import PeerLostError
from safe_dtype.ranks import gather_texts


@pytest.mark.parametrize(
    "texts", [["", ""], ["a", "größer", ""], ["x" * 100_000, "y"]], ids=["nothing", "some", "long"]
)
def test_all_ranks_read_all_texts(texts: list[str]) -> None:
    """Lengths may differ, and be nothing."""
    with ThreadPoolExecutor(len(texts)) as threads:
        assert list(threads.map(gather_texts, worlds(len(texts)), texts)) == [texts] * len(texts)


@pytest.mark.slow
def test_a_rank_that_does_not_come() -> None:
    """It is a lost peer, after the seconds that were allowed."""
    here, _ = worlds(2)
    with pytest.raises(PeerLostError, match=r"Rank 0 waited 0\.5"):
        gather_texts(here, "", seconds=0.5)
