"""Run on a copy of the weights in float32: for a model whose own weights somebody trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...models.offloaded import is_offloaded
from ...models.recast import main_dtype
from ...numerics.float32_copy import Float32Copy, bytes_of_copy, refuses_copy
from ..failure import FailureKind
from ..incident import Incident
from .attention import attention_as_it_is, leave_flash_attention
from .autocast import leave_callers_autocast
from .free_memory import require_free
from .remedy import NotPossible


@dataclass(frozen=True)
class UseFloat32Copy:
    """Have every step computed in float32, from a copy; outputs come in the dtype of the weights."""

    changes_dtype = False

    def __str__(self) -> str:
        return "a copy of the weights in float32"

    def apply(self, incident: Incident) -> int:
        """Make the copy, and turn an autocast off that is on around the step."""
        guard, model = incident.guard, incident.model
        now = main_dtype(model)
        if reason := "its weights are offloaded" if is_offloaded(model) else refuses_copy(model):
            raise NotPossible(reason)
        needed = bytes_of_copy(model)
        require_free(needed)
        incident.log.add(lambda: guard.__dict__.update(copy=None))
        guard.copy = Float32Copy(model)
        leave_callers_autocast(incident)
        incident.log.add(attention_as_it_is(model))
        leave_flash_attention(model)
        guard.cast_from = guard.autocast = None
        guard.left |= {torch.bfloat16, torch.float16} if now is None else {now}
        return sum(needed.values())

    def undo(self, incident: Incident) -> None:
        """Leave it so: nothing wider is left to try."""


def propose(incident: Incident) -> Iterator[UseFloat32Copy]:
    """Yield it where weights are in 16 bits, and no copy is in use."""
    may_help = incident.failure.kind is FailureKind.NONFINITE or incident.is_hopeful
    if may_help and incident.guard.copy is None and bytes_of_copy(incident.model):
        yield UseFloat32Copy()
