"""Which patches are in force: that of the process, and one of each open block. The last one decides."""

from __future__ import annotations

from dataclasses import dataclass

from ..planning import Policy
from ..processes.forked_lock import ForkedLock
from .telling import Telling


@dataclass(frozen=True, slots=True)
class Patch:
    """How models are loaded, and what is said of them."""

    policy: Policy
    tell: Telling


LOCK = ForkedLock()
OF_PROCESS: list[Patch] = []  # one, after patch()
OF_BLOCKS: list[list[Patch]] = []  # one in each, for every open `with patched()`, the innermost last


def patch_now() -> Patch | None:
    """Return how models are loaded; None where nothing is patched."""
    with LOCK:
        in_force = [*OF_PROCESS, *(patch for (patch,) in OF_BLOCKS)]
    return in_force[-1] if in_force else None
