"""Cast what one module is called with to the dtype of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ...models.islands import CastInputs
from ..failure import FailureKind
from ..incident import Incident
from .remedy import NotPossible


@dataclass(frozen=True)
class AlignModule:
    """Cast the inputs of one module to the dtype of its weights."""

    module: nn.Module
    changes_dtype = False

    def __str__(self) -> str:
        return "inputs of the module cast to its weights' dtype"

    def apply(self, incident: Incident) -> int:
        """Put a hook on the module."""
        dtypes = {weight.dtype for weight in self.module.parameters() if weight.is_floating_point()}
        if len(dtypes) != 1:
            raise NotPossible(f"the module has weights of {len(dtypes)} dtypes")
        if any(isinstance(hook, CastInputs) for hook in self.module._forward_pre_hooks.values()):
            raise NotPossible("they already are")
        incident.log.add(lambda: self.undo(incident))
        self.module.register_forward_pre_hook(CastInputs(), with_kwargs=True)
        return 0

    def undo(self, incident: Incident) -> None:  # noqa: ARG002  (the module is all that it changes)
        """Take the hook off again: it would cast at every call, for nothing."""
        hooks = self.module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, CastInputs)]:
            del hooks[key]
            self.module._forward_pre_hooks_with_kwargs.pop(key, None)


def propose(incident: Incident) -> Iterator[AlignModule]:
    """Yield it where two dtypes met inside a module that is known and is not the whole model."""
    is_mismatch = incident.failure.kind is FailureKind.DTYPE_MISMATCH
    if is_mismatch and incident.is_hopeful and incident.blamed is not None and incident.blamed is not incident.model:
        yield AlignModule(incident.blamed)
