"""Make the activations of a model smaller by more bits, where its exact rescaling was not enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...errors import RescaleError
from ...models.recast import main_dtype
from ...rescaling import rescaled_of
from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible

_MORE_BITS = 3


@dataclass(frozen=True)
class RaiseRescale:
    """Raise the exact rescaling of the model by some bits: its activations shrink, its results stay."""

    bits: int  # more than the plan's, in all
    changes_dtype = False

    def __str__(self) -> str:
        return f"the exact rescaling raised by {_MORE_BITS} bits"

    def apply(self, incident: Incident) -> int:
        """Multiply weights and eps in place. Caches stay: what is in them comes after a norm."""
        rescaled = rescaled_of(incident.model)
        if rescaled is None:
            raise NotPossible("the model is not rescaled")
        try:
            rescaled.raise_bits(self.bits - rescaled.raised)
        except RescaleError as exc:
            raise NotPossible(exc.problem) from exc
        return 0

    def undo(self, incident: Incident) -> None:
        """Leave it so: the next raise adds to it."""


def propose(incident: Incident) -> Iterator[RaiseRescale]:
    """Yield it where float16 overflowed in a model that is rescaled, and whatever is cached stays right."""
    if incident.failure.kind is not FailureKind.NONFINITE or main_dtype(incident.model) != torch.float16:
        return
    rescaled = rescaled_of(incident.model)
    if rescaled is None:
        return
    # What an earlier step cached has the size that it had then.
    if rescaled.effect.keeps_cache or incident.restarts or not incident.failure.step:
        yield RaiseRescale(rescaled.raised + _MORE_BITS)
