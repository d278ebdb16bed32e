"""What holds on CUDA holds on the rehearsal device: the same checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerator.rehearsal import Rehearsal
from device_checks import CHECKS, Device, is_rescued


def rehearsed(rehearsal: Rehearsal) -> Device:
    """Return the first rehearsal device, with its own counters and limits."""

    def waits(call: Callable[[], object]) -> int:
        with rehearsal.counting() as counting:
            call()
        return counting.counts.syncs

    @contextmanager
    def leave_free(free_bytes: int) -> Iterator[None]:
        limit = rehearsal.figure("limit")
        rehearsal.backend.empty_cache()
        rehearsal.leave_free(free_bytes)
        yield
        rehearsal.limit(limit)

    return Device(str(rehearsal.device()), waits, leave_free)


# One that loads and measures takes its time; how models are rescued here has tests of its own.
SLOW = {is_rescued: pytest.mark.slow}


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=check.__name__, marks=SLOW.get(check, ())) for check in CHECKS]
)
def test_on_the_rehearsal_device(rehearsal: Rehearsal, tmp_path: Path, check: Callable[[Device, Path], None]) -> None:
    """Each check holds."""
    check(rehearsed(rehearsal), tmp_path)
