"""Where each rank stands with its copy of a model, and the dtype in which all of them meet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..facts import Dtype, dtype_named
from ..guarding import Failure, FailureKind
from ..guarding.classify import first_line
from ..guarding.state import Guard


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """The copy of one model on one rank. Dtypes are names."""

    rank: int
    model: str  # see `model_key`
    now: str
    left: tuple[str, ...] = ()  # in which it has failed, there or elsewhere
    ladder: tuple[str, ...] = ()  # to go on in, best first
    kind: str = ""  # of the latest failure
    problem: str = ""

    def as_text(self) -> str:
        """Return it in one line, for other ranks."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> ModelCopy:
        """Return what `as_text` was made of."""
        entry = json.loads(text)
        return cls(**{**entry, "left": tuple(entry["left"]), "ladder": tuple(entry["ladder"])})


def agreed_dtype(copies: Sequence[ModelCopy]) -> Dtype:
    """Return the dtype for all copies: no rank has failed in it, and none has to go up its ladder to reach it.

    Each rank stays where it is, or goes to the next dtype of its ladder in which nobody has failed; of these the lowest on
    the ladder of the first rank is taken. The same copies give the same dtype, whoever asks.
    """
    ordered = sorted(copies, key=lambda copy: copy.rank)
    left = {name for copy in ordered for name in copy.left}
    ladder = ordered[0].ladder

    def depth(name: str) -> int:
        return ladder.index(name) if name in ladder else -1

    return dtype_named(max((_next_of(copy, left) for copy in ordered), key=depth))


def _next_of(copy: ModelCopy, left: set[str]) -> str:
    if copy.now not in left:
        return copy.now
    return next((name for name in copy.ladder if name not in left), copy.now)


def copy_of(guard: Guard, key: str, rank: int) -> ModelCopy:
    """Return how this rank stands with a guarded model, which the ranks call `key`."""
    now = guard.dtype()
    changes = [event for event in guard.events if event.after not in (None, event.before)]
    left = tuple(dict.fromkeys(event.before.name for event in changes))
    ladder = tuple(dtype.name for dtype in guard.ladder())
    kind, problem = (changes[-1].kind.value, first_line(changes[-1].message)) if changes else ("", "")
    return ModelCopy(rank, key, now.name if now is not None else "float64", left, ladder, kind, problem)


def failure_of(copies: Sequence[ModelCopy], now: str) -> Failure:
    """Return the failure for which a copy leaves the dtype `now`: of the lowest rank that has failed in it."""
    failed = min((copy for copy in copies if now in copy.left), key=lambda copy: copy.rank, default=None)
    if failed is None:
        return Failure(FailureKind.DTYPE_MISMATCH, "another rank is in another dtype")
    kind = FailureKind(failed.kind) if failed.kind else FailureKind.DTYPE_MISMATCH
    return Failure(kind, f"rank {failed.rank}: {failed.problem}", dtype_named(now))
