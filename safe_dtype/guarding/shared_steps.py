"""Steps that several processes compute together, each a part of them: none of them may cure the model on its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from .registration import Registered, Registration

if TYPE_CHECKING:
    from .diagnosis.trouble import Call, Recovery, Trouble
    from .state import Guard


PARTS = ("_local_tensor", "ds_id", "_is_flat_param")  # what DTensor, ZeRO-3 and FSDP1 have on a parameter


class SharedSteps(Protocol):
    """The other processes of a model that is spread over them, layer by layer."""

    def attempt(
        self, guard: Guard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Trouble | None]:
        """Call `forward(*args, **kwargs)` once: what it has returned, and how it went wrong, if it did."""

    def settle(self, call: Call, trouble: Trouble, output: Any) -> Recovery:
        """Meet with the others over a step that went wrong on all of them, and have all do the same.

        Raises:
            RestartNeededError: If the generation must begin anew, on all of them.
        """

    def may_restart(self, reason: str | None) -> str | None:
        """Return why a generation cannot begin anew: `reason`, or else that of another process; None where all can."""


Maker = Callable[["Guard"], SharedSteps | None]
_makers: Registered[Maker] = Registered()


def share_steps_by(make: Maker) -> Registration:
    """Have `make` asked, for each model that is guarded from now on, whether other processes compute its steps as well."""
    return _makers.add(make)


def shared_steps_of(guard: Guard) -> SharedSteps | None:
    """Return the other processes of a model that is being guarded; None where this one computes all of it."""
    return next((shared for make in _makers if (shared := make(guard)) is not None), None)


def is_spread(model: nn.Module | None) -> bool:
    """Whether other processes hold parts of the parameters of `model`: what runs or casts it here leaves them waiting.

    It walks over all parameters where there are other processes.
    """
    distributed = sys.modules.get("torch.distributed")
    if model is None or distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    return distributed.get_world_size() > 1 and any(
        hasattr(parameter, part) for parameter in model.parameters() for part in PARTS
    )
