"""Make the activations of a model smaller by more bits, where its exact rescaling was not enough."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...errors import RescaleError
from ...models.recast import main_dtype
from ...rescaling import Rescaled, rescaled_of
from ...rescaling.raising import raise_checked
from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible

_STEP = 3  # bits


@dataclass(frozen=True)
class RaiseRescale:
    """Raise the exact rescaling of the model by some bits: its activations shrink, its results stay."""

    before: int  # bits more than the plan's
    more: int
    changes_dtype = False

    def __str__(self) -> str:
        return f"the exact rescaling raised by {self.more} bits"

    def apply(self, incident: Incident) -> int:
        """Multiply weights and eps, and measure what that does to ordinary text. Caches stay: they come after a norm."""
        rescaled = rescaled_of(incident.model)
        if rescaled is None:
            raise NotPossible("the model is not rescaled")
        incident.log.add(functools.partial(_bring_back, rescaled, rescaled.raised, rescaled.too_few))
        try:
            reason = raise_checked(incident.model, rescaled, self.more, incident.guard.policy.max_drift)
        except RescaleError as exc:
            rescaled.too_few = 0
            raise NotPossible(exc.problem) from exc
        if reason:  # it may be that ordinary text needs more
            rescaled.too_few = self.before + self.more
            raise NotPossible(reason)
        return 0

    def undo(self, incident: Incident) -> None:
        """Take the bits back: they were too few. More are tried next, and another remedy may need none."""
        rescaled = rescaled_of(incident.model)
        if rescaled is not None:
            rescaled.too_few = rescaled.raised
            rescaled.raise_bits(self.before - rescaled.raised)


def _bring_back(rescaled: Rescaled, raised: int, too_few: int) -> None:
    rescaled.too_few = too_few
    rescaled.raise_bits(raised - rescaled.raised)


def propose(incident: Incident) -> Iterator[RaiseRescale]:
    """Yield it where float16 overflowed in a model that is rescaled, and whatever is cached stays right."""
    if incident.failure.kind is not FailureKind.NONFINITE or main_dtype(incident.model) != torch.float16:
        return
    rescaled = rescaled_of(incident.model)
    if rescaled is None:
        return
    # What an earlier step cached has the size that it had then.
    if rescaled.effect.keeps_cache or incident.restarts or not incident.failure.step:
        while True:
            bits = max(rescaled.raised, rescaled.too_few) + _STEP
            yield RaiseRescale(rescaled.raised, bits - rescaled.raised)
            if rescaled.too_few < bits:
                return
