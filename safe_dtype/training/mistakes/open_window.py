"""A window that ended with gradients and without a step: said once, and no step outside of an attempt takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from ...errors import TrainingLoopError
from ...errors.warn import warn
from ..judge_numbers import local_part

_ADVICE = "put all micro-batches of a step, `optimizer.step()` and `optimizer.zero_grad()` into `with attempt:`"


class OpenWindow:
    """Whether earlier attempts have left gradients for a step that is still to come.

    Such gradients were not voted on, and in float16 they have a scale. A step in a later attempt is as any other; one between
    attempts is refused.
    """

    def __init__(self) -> None:
        self._hooks: list[Any] = []
        self._is_told = False

    @property
    def is_open(self) -> bool:
        """Whether there are such gradients."""
        return bool(self._hooks)

    def allow(self) -> None:
        """Allow steps, for an attempt begins; whether there are such gradients is not changed."""
        for hook in self._hooks:
            hook.remove()

    def ends(self, optimizers: Sequence[Optimizer], *, has_stepped: bool) -> None:
        """Take note that an attempt is through, with a step of one of `optimizers` or without any."""
        self._hooks.clear()
        if has_stepped or not _have_gradients(optimizers):
            return
        self._hooks = [optimizer.register_step_pre_hook(_refuse) for optimizer in optimizers]
        if not self._is_told:
            self._is_told = True
            warn(
                "An attempt has left gradients, and no optimizer of its loop has stepped in it: nothing of that window is "
                f"counted, and where a later one fails it cannot run again. Next: {_ADVICE}"
            )


def _refuse(_optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    raise TrainingLoopError(
        "an optimizer steps outside of the attempt whose gradients it takes: nothing holds it back where they are not "
        "finite, and in float16 they still have their scale",
        _ADVICE,
    )


def _have_gradients(optimizers: Sequence[Optimizer]) -> bool:
    weights = (weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"])
    return any(weight.grad is not None and bool(local_part(weight.grad).any()) for weight in weights)
