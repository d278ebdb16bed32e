"""Run the plain model where its compiled form fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible


@dataclass(frozen=True)
class RunEagerly:
    """Run without the compiled form."""

    changes_dtype = False

    def __str__(self) -> str:
        return "without compilation"

    def apply(self, incident: Incident) -> int:
        """Turn off what `generate` compiles by itself for a static cache; what the caller compiled stays compiled."""
        if incident.guard.runs_eagerly:
            raise NotPossible("it already does")
        incident.log.add(lambda: setattr(incident.guard, "runs_eagerly", False))
        incident.guard.runs_eagerly = True
        return 0

    def undo(self, incident: Incident) -> None:
        """Leave it so: what is tried next runs without the compiled form as well."""


def propose(incident: Incident) -> Iterator[RunEagerly]:
    """Yield it where a graph could not be made or run."""
    if incident.failure.kind is FailureKind.EXPORT_GRAPH:
        yield RunEagerly()
