"""Use another implementation of attention: for a kernel that wants another device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible


@dataclass(frozen=True)
class ChangeAttention:
    """Use another implementation of attention, from the next step on."""

    implementation: str
    changes_dtype = False

    def __str__(self) -> str:
        return f"{self.implementation} attention"

    def apply(self, incident: Incident) -> int:
        """Switch every attention of the model."""
        model: Any = incident.model
        if not hasattr(model, "set_attn_implementation"):
            raise NotPossible(f"{type(model).__name__} has no choice of attention")
        try:
            model.set_attn_implementation(self.implementation)
        except (ValueError, ImportError) as exc:
            raise NotPossible(str(exc)) from exc
        if model.config._attn_implementation != self.implementation:
            raise NotPossible("transformers kept the old one")
        return 0

    def undo(self, incident: Incident) -> None:
        """Leave it so: every implementation computes the same, and the former one failed too."""


def propose(incident: Incident) -> Iterator[ChangeAttention]:
    """Yield the implementations that need less of a device than the one in use, where a kernel does not fit to it."""
    if incident.failure.kind is not FailureKind.KERNEL_ARCH:
        return
    now = str(getattr(getattr(incident.model, "config", None), "_attn_implementation", None))
    if now == "sdpa":
        yield ChangeAttention("eager")
    elif now not in ("eager", "None"):
        yield from (ChangeAttention("sdpa"), ChangeAttention("eager"))
