"""Compute one module with torch's own kernels in the place of oneDNN's: for a kernel that fails on this CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..diagnosis.experiment import comes_right_without_onednn
from ..failure import FailureKind
from ..incident import Incident
from .onednn_hooks import WithoutOneDNN, runs_without_onednn
from .remedy import NotPossible


@dataclass(frozen=True)
class TurnOffOneDNN:
    """Have one module computed without oneDNN, from the next step on."""

    module: nn.Module
    changes_dtype = False

    def __str__(self) -> str:
        return "the module without oneDNN"

    def apply(self, incident: Incident) -> int:
        """Put hooks on the module."""
        if runs_without_onednn(self.module):
            raise NotPossible("it already is")
        hooks = WithoutOneDNN()
        incident.log.add(lambda: hooks.detach(self.module))
        hooks.attach(self.module)
        return 0

    def undo(self, incident: Incident) -> None:  # noqa: ARG002  (the module is all that it changes)
        """Take the hooks off again: it was not the kernel."""
        for hooks in list(self.module._forward_hooks.values()):
            if isinstance(hooks, WithoutOneDNN):
                hooks.detach(self.module)


def propose(incident: Incident) -> Iterator[TurnOffOneDNN]:
    """Yield it where a trial of the module alone came out right without oneDNN, in the same dtype."""
    findings, calls = incident.findings, incident.calls
    if findings is not None:
        if findings.without_onednn and findings.module is not None:
            yield TurnOffOneDNN(findings.module)
        return
    is_by_numbers = incident.failure.kind is FailureKind.NONFINITE and incident.error is None
    if not is_by_numbers or not calls or calls[0].module is not incident.blamed:
        return
    if comes_right_without_onednn(incident.guard, incident.model, calls[0]):
        yield TurnOffOneDNN(calls[0].module)
