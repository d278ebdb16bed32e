"""Cast what a model is called with to the model's dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...models.casting import dtypes_of
from ...models.recast import main_dtype
from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible


@dataclass(frozen=True)
class AlignInputs:
    """Cast the floating inputs of every call to the dtype of the model."""

    changes_dtype = False

    def __str__(self) -> str:
        return "inputs cast to the model's dtype"

    def apply(self, incident: Incident) -> int:
        """Cast from now on. Whether this changes anything for the failing call is up to its inputs."""
        if incident.guard.aligns_inputs:
            raise NotPossible("they already are")
        incident.log.add(lambda: setattr(incident.guard, "aligns_inputs", False))
        incident.guard.aligns_inputs = True
        return 0

    def undo(self, incident: Incident) -> None:
        """Leave it so: the next calls are likely to have inputs of the same dtypes."""


def propose(incident: Incident) -> Iterator[AlignInputs]:
    """Yield it where two dtypes met, and the call has inputs in another one than the model's."""
    is_mismatch = incident.failure.kind is FailureKind.DTYPE_MISMATCH
    if is_mismatch and incident.is_hopeful and dtypes_of(incident.arguments) - {main_dtype(incident.model)}:
        yield AlignInputs()
