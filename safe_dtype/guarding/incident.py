"""One failure in one model, with all that is known about it when it is to be cured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .failure import Failure
from .state import Guard


@dataclass(frozen=True, slots=True)
class Incident:
    """A failure to cure. Nobody else runs a step of the model meanwhile."""

    guard: Guard
    model: nn.Module
    failure: Failure
    since: float  # time.perf_counter() when it was seen
    blamed: nn.Module | None = None  # the module that did it
    arguments: Any = ()  # the arguments of the call
    error: BaseException | None = None  # None where the numbers were bad
    restarts: bool = False  # the generation begins anew afterwards
