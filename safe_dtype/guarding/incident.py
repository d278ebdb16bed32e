"""One failure in one model, with all that is known about it when it is to be cured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..models.undo_log import UndoLog
from .diagnosis.findings import Findings
from .diagnosis.module_call import ModuleCall
from .failure import Failure
from .state import Guard


@dataclass(frozen=True, slots=True)
class Incident:
    """A failure to cure. Nobody else runs a step of the model meanwhile.

    Attributes:
        guard: What is kept with the guarded model: its policy, plan and events.
        model: The guarded model.
        failure: What went wrong: `kind`, `module` (by name), `step`, `message`.
        since: `time.perf_counter()` when it was seen.
        blamed: The module that failed; None where that is not known.
        arguments: The arguments of the call.
        error: The exception; None where the numbers were bad.
        restarts: Whether the generation begins anew afterwards.
        findings: What trials of the module that failed showed; None where the numbers were bad.
        calls: The calls that were running where the numbers went bad, innermost first; empty where that is not known.
        log: Where a remedy may note how it is taken back, for when the remedies that follow fail as well.
    """

    guard: Guard
    model: nn.Module
    failure: Failure
    since: float
    blamed: nn.Module | None = None
    arguments: Any = ()
    error: BaseException | None = None
    restarts: bool = False
    findings: Findings | None = None
    calls: tuple[ModuleCall, ...] = ()
    log: UndoLog = field(default_factory=UndoLog)

    @property
    def is_hopeful(self) -> bool:
        """Whether no trial speaks against a change of dtypes."""
        return self.findings is None or self.findings.is_hopeful
