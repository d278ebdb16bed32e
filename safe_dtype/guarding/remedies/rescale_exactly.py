"""Rescale a model exactly where float16 overflows and nobody planned a rescale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ...errors import RescaleError
from ...facts import Rescale
from ...models.offloaded import is_offloaded
from ...models.recast import main_dtype
from ...rescaling import gauges_for, keep_rescaled, rescaled_of
from ...rescaling.folding.save import save_as_it_was
from ...rescaling.raising import rescale_checked
from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible

_BITS, _MORE_BITS = 6, 9  # the error is the same from 4 to 11 bits (measured)


@dataclass(frozen=True)
class RescaleExactly:
    """Rescale a model exactly that was loaded without: what its architecture allows is found out now."""

    changes_dtype = False

    def __str__(self) -> str:
        return "an exact rescaling"

    def apply(self, incident: Incident) -> int:
        """Find the gauges of the architecture, fold them in, and prove on the model that its results are the same."""
        model: Any = incident.model
        if not isinstance(model, PreTrainedModel):
            raise NotPossible(f"{type(model).__name__} is no model of transformers")
        if is_offloaded(model):
            raise NotPossible("its weights are offloaded")
        with torch.inference_mode(mode=False), torch.enable_grad():
            discovery = gauges_for(model)
        residual = [gauge for gauge in discovery.gauges if gauge.name.endswith("residual")]
        if not residual:
            raise NotPossible(discovery.problem or "its architecture allows none")
        goes_on = bool(incident.failure.step) and not incident.restarts  # from what earlier steps cached
        problem = ""
        for gauges, bits in ((residual, _BITS), (residual, _MORE_BITS), (discovery.gauges, _BITS)):
            rescale = Rescale(tuple((gauge, bits) for gauge in gauges), discovery.not_run)
            try:
                fold, effect = rescale_checked(
                    model, rescale, incident.guard.policy.max_drift, keeps_cache=goes_on, log=incident.log
                )
                break
            except RescaleError as exc:
                problem = problem or exc.problem
        else:
            raise NotPossible(problem)
        keep_rescaled(model, fold, effect, loaded=Rescale(()), log=incident.log)
        save_as_it_was(model, incident.log)
        incident.guard.look_anew()
        return 0

    def undo(self, incident: Incident) -> None:
        """Leave it so: results are the same, and raising it by more bits is tried next."""


def propose(incident: Incident) -> Iterator[RescaleExactly]:
    """Yield it where float16 overflowed in a model that is not rescaled."""
    if incident.failure.kind is not FailureKind.NONFINITE or main_dtype(incident.model) != torch.float16:
        return
    if rescaled_of(incident.model) is None:
        yield RescaleExactly()
