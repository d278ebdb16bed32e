"""Errors of a job of several processes: one is gone, one has failed, or they do not hold the same."""

from __future__ import annotations

from collections.abc import Sequence

from .base import SafeDtypeError


class RanksError(SafeDtypeError, RuntimeError):
    """A job of several processes, its ranks, that cannot go on together."""


class PeerLostError(RanksError):
    """The other ranks did not answer: one has ended, or has not come for so many seconds.

    It says nothing of a model or a dtype, and is never remembered.
    """

    def __init__(self, rank: int, seconds: float, problem: str, missing: tuple[int, ...] = ()) -> None:
        super().__init__(rank, seconds, problem, missing)
        self.rank = rank  # which noticed
        self.seconds = seconds  # that it waited
        self.problem = problem
        self.missing = missing  # the ranks that did not answer, as far as is known

    def __str__(self) -> str:
        others = named_ranks(self.missing) if self.missing else "another rank"
        return (
            f"Rank {self.rank} waited {self.seconds:.3g} s for {others}: {self.problem}. Next: look for the first error in "
            "the logs of all ranks, and start the job again; `safe-dtype launch` restarts all ranks together."
        )


class RanksDisagreeError(RanksError):
    """The ranks do not hold the same checkpoint, policy or plan. It is raised on all of them."""

    def __init__(self, what: str, values: tuple[tuple[tuple[int, ...], str], ...], advice: str) -> None:
        super().__init__(what, values, advice)
        self.what = what  # "checkpoint", "policy", ...
        self.values = values  # the ranks that agree with each other, and what they hold
        self.advice = advice

    def __str__(self) -> str:
        values = "; ".join(f"{named_ranks(ranks)}: {value}" for ranks, value in self.values)
        return f"The ranks of this job do not agree on the {self.what}: {values}. Next: {self.advice}."


class RemoteFailure(RanksError):  # noqa: N818  (no fault of this rank)
    """Another rank failed, and this one ends with it instead of waiting for it."""

    def __init__(self, rank: int, problem: str) -> None:
        super().__init__(rank, problem)
        self.rank = rank  # which failed
        self.problem = problem  # its error: type and text

    def __str__(self) -> str:
        return f"Rank {self.rank} failed: {self.problem}. Next: look at the log of rank {self.rank}."


def named_ranks(ranks: Sequence[int]) -> str:
    """Return 'rank 1', or 'ranks 1, 3'; of many the first eight."""
    some = ", ".join(map(str, ranks[:8]))
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {some}{more}"
