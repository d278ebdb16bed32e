"""Compute one module in float32 inside a model in 16 bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ...facts import FLOAT32
from ...models.islands import Island, can_be_island
from ...models.recast import growth, main_dtype, recast
from ...rescaling.folding.rounded_weights import RoundedWeights
from ..failure import FailureKind
from ..incident import Incident
from .free_memory import require_free
from .optimizer_states import keep_optimizers
from .remedy import NotPossible

# What may be wrong in one module alone.
_KINDS = (FailureKind.OP_UNSUPPORTED, FailureKind.KERNEL_ARCH, FailureKind.NONFINITE)


@dataclass(frozen=True)
class MakeIsland:
    """Compute one module in float32 inside a model in 16 bit."""

    module: nn.Module
    changes_dtype = False

    def __str__(self) -> str:
        return "the module in float32"

    def apply(self, incident: Incident) -> int:
        """Recast the module, cast its inputs and its outputs."""
        outside = main_dtype(incident.model)
        if outside is None or (reason := can_be_island(incident.model, self.module)):
            raise NotPossible(reason or "the model has no weights")
        require_free(growth(self.module, {outside}, torch.float32))
        island = Island(outside)
        incident.log.add(lambda: island.detach(self.module))
        with RoundedWeights(incident.model) as weights:
            own = weights.of(_name_of(self.module, incident.model))
            changed = recast(self.module, {outside}, torch.float32, original=own, log=incident.log)
        weights.tell()
        island.attach(self.module)
        keep_optimizers(self.module, {outside})
        return changed.grown_bytes

    def undo(self, incident: Incident) -> None:
        """Leave it so: weights in float32 lose nothing, and a wider dtype of the whole model takes the island in."""


def _name_of(module: nn.Module, model: nn.Module) -> str:
    return next((name for name, inner in model.named_modules() if inner is module), "")


def propose(incident: Incident) -> Iterator[MakeIsland]:
    """Yield it where the policy allows islands, and the failure is that of a known module."""
    findings = incident.findings
    if findings is not None and not findings.may_work(FLOAT32):
        return
    if incident.guard.policy.islands and incident.blamed is not None and incident.failure.kind in _KINDS:
        yield MakeIsland(incident.blamed)
