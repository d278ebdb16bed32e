"""Run under `torch.autocast` where weights of several dtypes meet in many modules, or leave the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.amp.autocast_mode import autocast

from ...models.recast import main_dtype
from ...models.wrapped_methods import wrap_method
from ..callers_autocast import AutocastOverride, autocast_around, overriding_enter
from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible


@dataclass(frozen=True)
class UseAutocast:
    """Run every step under `torch.autocast` in the model's 16-bit dtype: for adapters in float32, and the like."""

    changes_dtype = False

    def __str__(self) -> str:
        return "torch.autocast"

    def apply(self, incident: Incident) -> int:
        """Turn it on from now on. Weights stay in their dtypes; those in float32 are cast at every step."""
        main = main_dtype(incident.model)
        devices = {weight.device.type for weight in incident.model.parameters()}
        if incident.guard.autocast is not None:
            raise NotPossible("it is on already")
        # In float32 it would do nothing, and on CUDA switch itself off.
        if main not in (torch.bfloat16, torch.float16) or len(devices) != 1:
            raise NotPossible(f"the model is in {main}, on {', '.join(sorted(devices))}")
        incident.log.add(lambda: setattr(incident.guard, "autocast", None))
        incident.guard.autocast = (devices.pop(), main)
        return 0

    def undo(self, incident: Incident) -> None:
        """Leave it on: the next change of the model's dtype turns it off."""


def propose(incident: Incident) -> Iterator[UseAutocast]:
    """Yield it where two dtypes met, and several modules have weights in another one than the model's."""
    is_mismatch = incident.failure.kind is FailureKind.DTYPE_MISMATCH
    if is_mismatch and incident.is_hopeful and len(_outsiders(incident.model)) > 1:
        yield UseAutocast()


def leave_callers_autocast(incident: Incident) -> None:
    """Turn the caller's autocast off in the steps of the model from now on: in float32 it would narrow them again."""
    guard, around = incident.guard, autocast_around(incident.model)
    if around is None:
        return
    former = guard.override
    incident.log.add(lambda: guard.__dict__.update(override=former))
    guard.override = AutocastOverride(around, None)
    wrap_method(autocast, "__enter__", overriding_enter, guard)


def _outsiders(model: nn.Module) -> list[nn.Module]:
    """Return the modules that multiply by weights in another dtype than the model's."""
    main = main_dtype(model)
    return [
        module
        for module in model.modules()
        for weight in module.parameters(recurse=False)
        if weight.dim() > 1 and weight.is_floating_point() and weight.dtype != main
    ]
